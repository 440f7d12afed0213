// The Python side of the sandbox: runs one program in a fresh interpreter and reports its outcome in JSON. The
// functions that it calls are bound before the program runs, which may change any module. A program can still lie
// about itself from the inside (an __eq__ that is always true, in tests that are Python too), which is why function
// results are compared outside.

/** Defines `__run__(job: str) -> str`. */
export const PYTHON_HARNESS = `
def __make__():
    import builtins, io, json, sys, traceback

    loads, dumps, compile_, exec_ = json.loads, json.dumps, compile, exec
    list_, tuple_, dict_, set_ = list, tuple, dict, frozenset
    isinstance_, type_, len_, repr_, iter_ = isinstance, type, len, repr, iter
    str_, int_, float_, bool_ = str, int, float, bool
    BaseException_, MemoryError_, SystemExit_, Exception_ = BaseException, MemoryError, SystemExit, Exception
    raw_bytes = io.BytesIO
    MAX_DEPTH, MAX_NODES = 200, 200000

    class Sink(io.RawIOBase):
        def __init__(self, limit):
            self.kept, self.limit, self.total = raw_bytes(), limit, 0
        def writable(self):
            return True
        def write(self, data):
            size = len_(data)
            room = self.limit - self.kept.tell()
            if room > 0:
                self.kept.write(bytes(data[:room]))
            self.total += size
            return size

    def encode(value, depth, state):
        state[0] += 1
        if depth > MAX_DEPTH or state[0] > MAX_NODES:
            return {"$other": "too large"}
        kind = type_(value)
        if value is None or kind is bool_:
            return value
        if isinstance_(value, int_):
            value = int_.__add__(value, 0)
            if -9007199254740991 <= value <= 9007199254740991:
                return value
            return {"$int": str_(value)} if value.bit_length() < 1000000 else {"$other": "int"}
        if isinstance_(value, float_):
            value = float_.__add__(value, 0.0)
            return value if value - value == 0 else {"$float": repr_(value)}
        if isinstance_(value, str_):
            state[0] += len_(value) // 10
            return str_.__str__(value) if state[0] <= MAX_NODES else {"$other": "too large"}
        if isinstance_(value, (list_, tuple_)):
            if id(value) in state[1]:
                return "<recursion>"
            state[1].add(id(value))
            walk = list_.__iter__(value) if isinstance_(value, list_) else tuple_.__iter__(value)
            out = [encode(item, depth + 1, state) for item in walk]
            state[1].discard(id(value))
            return out
        if isinstance_(value, dict_):
            if id(value) in state[1]:
                return "<recursion>"
            state[1].add(id(value))
            def inner(item):
                return encode(item, depth + 1, state)
            pairs = [[inner(key), inner(item)] for key, item in dict_.items(value)]
            state[1].discard(id(value))
            return {"$dict": pairs}
        if kind is set or kind is set_:
            return {"$set": [encode(item, depth + 1, state) for item in iter_(value)]}
        return {"$other": kind.__name__}

    def valid_part(code):
        lines = code.split("\\n")
        for end in range(len_(lines), 0, -1):
            part = "\\n".join(lines[:end])
            try:
                compile_(part, "<answer>", "exec")
                return part
            except BaseException_:
                pass
        return code

    def run(text):
        job = loads(text, object_hook=lambda item: int_(item["$int"]) if len_(item) == 1 and "$int" in item else item)
        sink, errors = Sink(job["outputLimit"]), Sink(job["outputLimit"])
        out = io.TextIOWrapper(io.BufferedWriter(sink), encoding="utf-8", errors="replace", write_through=True)
        err = io.TextIOWrapper(io.BufferedWriter(errors), encoding="utf-8", errors="replace", write_through=True)
        given = raw_bytes(job["stdin"].encode("utf-8", "surrogatepass"))
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(given, encoding="utf-8", errors="replace")
        sys.stdout, sys.stderr = out, err
        sys.__stdout__, sys.__stderr__ = out, err
        sys.argv = ["answer.py"]
        sys.setrecursionlimit(job["recursionLimit"])
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(0)
        call = job["call"]
        scope = {"__builtins__": builtins, "__name__": "__main__" if call is None else "__answer__"}
        result = {"status": "ok", "error": None, "value": None}
        try:
            code = valid_part(job["code"]) if job["trim"] else job["code"]
            exec_(compile_(code + ("\\n\\n" + job["tests"] if job["tests"] else ""), "<answer>", "exec"), scope)
            if call is not None:
                function = scope.get(call["name"])
                if function is None or not callable(function):
                    raise ValueError("function %r is not defined" % call["name"])
                given = call["input"]
                args, kwargs = (), {}
                if isinstance_(given, dict_) and ("args" in given or "kwargs" in given):
                    args = given.get("args", [])
                    args = tuple_(args) if isinstance_(args, list_) else () if args is None else (args,)
                    kwargs = given.get("kwargs") if isinstance_(given.get("kwargs"), dict_) else {}
                elif isinstance_(given, list_):
                    args = tuple_(given)
                elif given is not None:
                    args = (given,)
                result["value"] = encode(function(*args, **kwargs), 0, [0, set()])
        except SystemExit_ as error:
            # A script may end so; tests that stand behind it have then not run.
            if call is not None or job["mustFinish"] or error.code not in (None, 0):
                code = error.code if isinstance_(error.code, (int_, str_)) else ""
                result["status"], result["error"] = "error", "SystemExit(%s)" % code
        except MemoryError_:
            result["status"], result["error"] = "memory", "MemoryError()"
        except BaseException_ as error:
            result["status"] = "error"
            try:
                result["error"] = repr_(error)[:2000]
            except BaseException_:
                result["error"] = type_(error).__name__
        try:
            out.flush()
        except BaseException_:
            pass
        result["stdout"] = sink.kept.getvalue().decode("utf-8", "replace")
        result["truncated"] = sink.total > sink.limit
        result["stderr"] = errors.kept.getvalue().decode("utf-8", "replace")[-2000:]
        return dumps(result)

    return run

__run__ = __make__()
`;
