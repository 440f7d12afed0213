// The Python side of the runners: runs one program in a fresh interpreter and reports its outcome in JSON. The
// functions that it calls are bound before the program runs, which may change any module. A program can still lie
// about itself from the inside (an __eq__ that is always true, in tests that are Python too), which is why function
// results are compared outside.
//
// Input and output are those of a process: file descriptors 0, 1 and 2, which the runner connects.
import { PYTHON_FINDER } from './python-finder';

/** What a program is to do, as JSON for the harness. */
export interface HarnessJob {
  code: string;
  /** null: none, and the program is the main one. */
  tests: string | null;
  trim: boolean;
  extract: { head: string } | null;
  call: { name: string; input: unknown } | null;
  mustFinish: boolean;
  /** Text for file descriptor 0; null where the runner has connected it. */
  stdin: string | null;
  /** Whether there is something to read. */
  hasInput: boolean;
  outputLimit: number;
  recursionLimit: number;
}

/** What the harness reports. */
export interface HarnessReport {
  status: 'ok' | 'error' | 'memory';
  error: string | null;
  value: unknown;
}

/** Defines `__run__(job: str) -> str`. */
export const PYTHON_HARNESS = `${PYTHON_FINDER}
def __make__(find, valid_lines):
    import atexit, builtins, gc, json, os, sys, traceback, types

    loads, dumps, compile_, exec_ = json.loads, json.dumps, compile, exec
    list_, tuple_, dict_, set_ = list, tuple, dict, frozenset
    isinstance_, type_, len_, repr_, iter_ = isinstance, type, len, repr, iter
    str_, int_, float_, bool_ = str, int, float, bool
    BaseException_, MemoryError_, SystemExit_, Exception_ = BaseException, MemoryError, SystemExit, Exception
    hasattr_, id_ = hasattr, id
    open_, module_, collect, run_exit_functions = open, types.ModuleType, gc.collect, atexit._run_exitfuncs
    make_file, write_file, close_file, duplicate = os.open, os.write, os.close, os.dup2
    remove, WRITE, READ = os.remove, os.O_WRONLY | os.O_CREAT, os.O_RDONLY
    MAX_DEPTH, MIN_NODES = 200, 200000
    new_set = set
    PLAIN = {"$int": int_, "$float": float_, "$dict": dict_}

    def plain(item):
        if len_(item) == 1:
            for key, make in PLAIN.items():
                if key in item:
                    return make(item[key])
        return item

    def encode(value, depth, state):
        state[0] += 1
        if depth > MAX_DEPTH or state[0] > state[2]:
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
            return str_.__str__(value) if state[0] <= state[2] else {"$other": "too large"}
        if isinstance_(value, (list_, tuple_)):
            if id_(value) in state[1]:
                return "<recursion>"
            state[1].add(id_(value))
            walk = list_.__iter__(value) if isinstance_(value, list_) else tuple_.__iter__(value)
            out = [encode(item, depth + 1, state) for item in walk]
            state[1].discard(id_(value))
            return out
        if isinstance_(value, dict_):
            if id_(value) in state[1]:
                return "<recursion>"
            state[1].add(id_(value))
            def inner(item):
                return encode(item, depth + 1, state)
            pairs = [[inner(key), inner(item)] for key, item in dict_.items(value)]
            state[1].discard(id_(value))
            return {"$dict": pairs}
        if kind is new_set or kind is set_:
            return {"$set": [encode(item, depth + 1, state) for item in iter_(value)]}
        # Numbers that Python's == takes for whole numbers or floats, and arrays, which the reference takes for lists.
        if kind.__module__ in ("decimal", "fractions") and kind.__name__ in ("Decimal", "Fraction"):
            above, below = value.as_integer_ratio()
            if below == 1:
                return encode(int_(above), depth, state)
            near = int_(above) / int_(below)
            return near if near.as_integer_ratio() == (above, below) else {"$other": kind.__name__}
        if kind.__module__ == "numpy" and hasattr_(value, "tolist"):
            value = value.tolist()
            return {"$other": kind.__name__} if type_(value) is kind else encode(value, depth + 1, state)
        return {"$other": kind.__name__}

    def connect(text):
        """A file as standard input: file descriptor 0 and /dev/stdin."""
        remove("/dev/stdin")
        file = make_file("/dev/stdin", WRITE)
        rest = memoryview(text.encode("utf-8", "surrogatepass"))
        while len_(rest) > 0:
            rest = rest[write_file(file, rest) :]
        close_file(file)
        file = make_file("/dev/stdin", READ)
        duplicate(file, 0)
        close_file(file)

    def stream(descriptor, mode):
        return open_(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)

    def quietly(work):
        try:
            work()
        except BaseException_:
            pass

    def run(text):
        job = loads(text, object_hook=plain)
        if job["stdin"] is not None:
            connect(job["stdin"])
        out, err = stream(1, "w"), stream(2, "w")
        sys.stdin = sys.__stdin__ = stream(0, "r")
        sys.stdout = sys.__stdout__ = out
        sys.stderr = sys.__stderr__ = err
        sys.argv = ["answer.py"]
        sys.setrecursionlimit(job["recursionLimit"])
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(0)
        call, tests = job["call"], job["tests"]
        is_main = call is None and tests is None
        # Functions under test are those of a module that is imported: a block for the main program does not run.
        name = "__main__" if is_main else "__answer__"
        module = module_(name)
        scope = module.__dict__
        scope["__builtins__"] = builtins
        sys.modules[name] = module
        result = {"status": "ok", "error": None, "value": None}
        try:
            if job["extract"]:
                sources = find(job)
            elif job["trim"]:
                lines = job["code"].split("\\n")
                sources = ["\\n".join(lines[: valid_lines(lines, True) or len_(lines)])]
            else:
                sources = [job["code"]]
            # Nothing runs unless all is Python, each text by itself: none can swallow the one behind it.
            programs = [compile_(source, "<answer>", "exec", dont_inherit=True) for source in sources]
            check = None if tests is None else compile_(tests, "<tests>", "exec", dont_inherit=True)
            for program in programs:
                exec_(program, scope)
            if check is not None:
                # The tests are what is run: a block for the main program among them does.
                scope["__name__"], sys.modules["__main__"] = "__main__", module
                exec_(check, scope)
            if call is not None:
                name = call["name"]
                holder = scope.get("Solution")
                if isinstance_(holder, type_):
                    function = getattr(holder(), name, None)
                else:
                    function = scope.get(name)
                if function is None or not callable(function):
                    raise ValueError("function %r is not defined" % name)
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
                nodes = max(MIN_NODES, job["outputLimit"] // 5)
                result["value"] = encode(function(*args, **kwargs), 0, [0, new_set(), nodes])
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
        if is_main:
            # The end of a process: its threads, its exit functions, its files.
            quietly(lambda: sys.modules["threading"]._shutdown())
            quietly(run_exit_functions)
        quietly(lambda: sys.stdout.flush())
        quietly(out.flush)
        if is_main:
            sys.stdout, sys.stdin = out, None
            quietly(scope.clear)
            quietly(collect)
            quietly(out.flush)
        quietly(err.flush)
        return dumps(result)

    return run

__run__ = __make__(__find__, __valid_lines__)
`;
