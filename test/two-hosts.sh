#!/bin/sh
# two-hosts.sh LAUNCHER RANKS COMMAND…: a job on two hosts, which are namespaces of this machine: each has a network and
# a host name of its own, and one cable between them. nsenter stands in for ssh.
set -eu
if [ "$1" != --inside ]; then exec unshare --user --map-root-user --net --uts -- "$0" --inside "$@"; fi
launcher=$2 ranks=$3
shift 3
hostname first-host
ip link set lo up
unshare --net --uts -- sh -c 'hostname second-host && exec sleep 600' &
second=$!
agent=$(mktemp)
trap 'kill $second; rm -f "$agent"' EXIT
while [ "$(readlink /proc/$second/ns/uts)" = "$(readlink /proc/self/ns/uts)" ]; do sleep 0.01; done
ip link add cable type veth peer name cable netns $second
ip address add 10.99.0.1/24 dev cable
ip link set cable up
nsenter --target $second --net -- sh -c 'ip link set lo up; ip address add 10.99.0.2/24 dev cable; ip link set cable up'
cat >"$agent" <<END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\$1
shift
[ "\$host" = 10.99.0.2 ] || exec sh -c "\$*"
exec nsenter --target $second --net --uts -- sh -c "\$*"
END
chmod +x "$agent"
case $launcher in
*openmpi*)
  hosts=10.99.0.1:$(((ranks + 1) / 2)),10.99.0.2:$((ranks / 2))
  "$launcher" --allow-run-as-root --bind-to none --mca plm_rsh_agent "$agent" --host "$hosts" -n "$ranks" "$@"
  ;;
*)
  "$launcher" -launcher ssh -launcher-exec "$agent" -localhost 10.99.0.1 -iface cable -hosts 10.99.0.1,10.99.0.2 \
    -n "$ranks" "$@"
  ;;
esac
