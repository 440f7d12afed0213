# Sourced by the stages: fail on the first error, in the root of the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Object files that differ only in their build tree or debug paths are shared.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
# ThreadSanitizer of older compilers does not start under the address layouts of newer kernels; without randomisation it
# does.
fixed_layout=()
if setarch "$(uname -m)" -R true 2>/dev/null; then fixed_layout=(setarch "$(uname -m)" -R); fi
