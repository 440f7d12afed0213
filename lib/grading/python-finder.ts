// Finds the program in an answer: the one rule for all data sets of programs. It is Python, because whether something
// is a program is for Python's parser to say, and it runs before any line of the answer does: a program is chosen by
// its form, and never by the tests that it passes.
//
// Where an answer is searched: behind thoughts (think tags), inside of answer tags, in Markdown's fences, in lines
// between prose. Of several programs the last one that defines what the tests call is taken: a correction follows what
// it corrects. Parts that define names which it uses are put before it.

/** A backtick, which the text below cannot hold. */
const TICK = '\u0060';

/** Defines `__find__(job: dict) -> list of str`: texts that are run one after the other. */
export const PYTHON_FINDER = String.raw`
def __make_find__():
    import ast, builtins, re, textwrap, warnings

    # Tokens that end an answer. Those that mean something else in other texts count at the end alone.
    END = re.compile(
        r"<\|(?:endoftext|end_of_text|im_end|eot_id|eom_id|eot|eos|end|return|endofprompt|fim_pad)\|>"
        r"|<end_of_turn>|<\uff5cend\u2581of\u2581sentence\uff5c>|(?:</s>|<eos>|<EOS>|<pad>)\s*\Z"
    )
    # In quotes, a tag is a part of a program.
    THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning|scratchpad)"
    OPEN_THOUGHT = r"(?<!['\"])(?:<" + THOUGHT + r"\s*>|\[THINK\]|\u25c1think\u25b7|<\|begin_of_thought\|>)(?!['\"])"
    CLOSE_THOUGHT = r"(?<!['\"])(?:</" + THOUGHT + r"\s*>|\[/THINK\]|\u25c1/think\u25b7|<\|end_of_thought\|>)(?!['\"])"
    FENCE = re.compile(r"^(?P<before>.*?)(?P<fence>${TICK}{3,}|~{3,})(?P<info>[^${TICK}]*)$")
    ONE_LINE = re.compile(r"${TICK}{3,}[ \t]*(?:(?:i?python|py)[\d.]*\b)?[ \t]*([^${TICK}]*[^${TICK}\s][^${TICK}]*?)[ \t]*${TICK}{3,}[ \t]*$", re.I)
    LIST = re.compile(r"^\s*(?:(?:[-*+]|\d+[.)])\s+)*\s*$")
    QUOTE = re.compile(r"^\s*>[> ]*$")
    PYTHON = re.compile(r"^[{.\s]*(?:[ic]?python|py|pypy|jupyter|sage)[\d.]*(?![A-Za-z])|^\S+\.py$", re.I)
    NEUTRAL = re.compile(r"^(?:code|solution|answer|program|final|main|function)$", re.I)
    START = re.compile(
        r"^\s*(?:(?:def|class|async|import|from|if|for|while|try|with|return|global|nonlocal|lambda|assert)\b"
        r"|[@#(\[]|[A-Za-z_][\w., \[\]'\"]*\s*[-+*/%&|^]?=|[A-Za-z_][\w.]*\s*[(\[])"
    )
    BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__builtins__"}
    MAX_TRIES, MAX_SEGMENTS = 8, 60
    # Characters that may be parsed for one answer: some hundred times what an ordinary one takes.
    budget = [0]

    def wrong(text, whole=False):
        """Why a text is no Python; None where it is."""
        if budget[0] <= 0:
            return SyntaxError("the answer is too long to be searched")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(text, "<answer>", "exec", dont_inherit=True) if whole else ast.parse(text)
        except BaseException as error:
            budget[0] -= len(text)
            return error
        budget[0] -= len(text)
        return None

    def valid_lines(lines, whole=False):
        """Number of lines up to the last one up to which they are Python."""
        end = len(lines)
        while end > 0:
            error = wrong("\n".join(lines[:end]), whole)
            if error is None:
                return end
            # No prefix that holds the line of the first error is right.
            at = getattr(error, "lineno", None)
            end = min(end - 1, at - 1) if at else end - 1
        return 0

    def tree_of(text):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)

    FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

    def is_stub(node):
        """A head without a body: nothing but documentation, pass, ... or NotImplementedError."""
        for part in node.body:
            if isinstance(part, ast.Pass):
                continue
            if isinstance(part, ast.Expr) and isinstance(part.value, (ast.Constant, ast.Name)):
                continue
            if isinstance(part, ast.Raise) and "NotImplementedError" in ast.dump(part):
                continue
            return False
        return True

    def is_word(node):
        """Words that happen to be Python, as "Done" and "Note: fast" are."""
        if isinstance(node, ast.AnnAssign):
            return node.value is None
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Name)

    def first_line(node):
        return min([node.lineno] + [part.lineno for part in getattr(node, "decorator_list", [])])

    def targets(node):
        return [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]

    def definitions(body):
        """Names that statements define at their top level, and whether more than a stub of them is there."""
        names = {}
        for node in body:
            if isinstance(node, FUNCTIONS):
                names[node.name] = not is_stub(node)
            elif isinstance(node, ast.ClassDef):
                names[node.name] = True
                if node.name == "Solution":
                    for name, full in definitions([part for part in node.body if isinstance(part, FUNCTIONS)]).items():
                        names.setdefault("Solution." + name, full)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    names[(alias.asname or alias.name).split(".")[0]] = True
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                if getattr(node, "value", None) is not None:
                    names.update((name, True) for name in targets(node))
            else:
                for field in ("body", "handlers", "orelse", "finalbody"):
                    parts = getattr(node, field, None)
                    if isinstance(parts, list):
                        for part in parts:
                            if isinstance(part, ast.ExceptHandler):
                                names.update(definitions(part.body))
                        names.update(definitions([part for part in parts if isinstance(part, ast.stmt)]))
                if isinstance(node, (ast.For, ast.With)):
                    names.update((name, True) for name in targets(node))
        return names

    def free_names(tree):
        """Names that are used and bound nowhere: what a program needs of its surroundings."""
        used, bound = set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, FUNCTIONS + (ast.ClassDef,)):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    if alias.name == "*":
                        return set()
                    bound.add((alias.asname or alias.name).split(".")[0])
            elif type(node).__name__ in ("MatchAs", "MatchStar") and node.name:
                bound.add(node.name)
        return used - bound - BUILTINS

    # The answer.

    def clean(text):
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = text.replace("\u2028", "\n").replace("\u2029", "\n")
        text = re.sub("(?m)^[\ufeff\u200b]+", "", text)
        end = END.search(text)
        return text[: end.start()] if end else text

    def without_thoughts(text):
        """What is said, and a thought that does not end."""
        text = re.sub(OPEN_THOUGHT + r"(?:(?!" + OPEN_THOUGHT + r").)*?" + CLOSE_THOUGHT, "\n", text, flags=re.S | re.I)
        text = re.split(CLOSE_THOUGHT, text, flags=re.I)[-1]
        said, *thoughts = re.split(OPEN_THOUGHT, text, flags=re.I)
        return said, "\n".join(thoughts)

    def between(text, opening, closing):
        return [re.split(closing, part, maxsplit=1, flags=re.I)[0] for part in re.split(opening, text, flags=re.I)[1:]]

    def regions(text):
        """Where the program may be, the likeliest first."""
        said, thought = without_thoughts(text)
        found = []
        for tag in ("answer", "solution", "code"):
            found += reversed(between(said, r"(?<!['\"])<" + tag + r"\s*>", r"</" + tag + r"\s*>"))
        found += reversed(between(said, r"\[PYTHON\]", r"\[/PYTHON\]"))
        # The marks of MBPP's prompt: what follows the first [DONE] is another problem.
        found += between(said, r"\[BEGIN\]", r"\[DONE\]")
        found += [said.split("[DONE]")[0], said, thought]
        return [part for part in dict.fromkeys(found) if part.strip()]

    def shifted(lines):
        """Lines whose first one has lost its indentation, with that of the line that has least."""
        widths = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
        if len(widths) < 2 or widths[0] >= min(widths[1:]):
            return None
        first = next(at for at, line in enumerate(lines) if line.strip())
        margin = " " * (min(widths[1:]) - widths[0])
        return textwrap.dedent("\n".join(lines[:first] + [margin + lines[first]] + lines[first + 1 :])).split("\n")

    def forms(lines):
        """A text in the ways in which it may be meant."""
        plain = textwrap.dedent("\n".join(lines).replace("\x0c", "")).split("\n")
        yield plain
        other = shifted(plain)
        if other:
            yield other
        if any("\xa0" in line or "\u3000" in line for line in plain):
            spaced = textwrap.dedent("\n".join(plain).replace("\xa0", " ").replace("\u3000", " ")).split("\n")
            yield spaced
            other = shifted(spaced)
            if other:
                yield other

    class Part:
        """A text that may be the program: rank 2 is said to be Python, 1 not said, 0 said to be something else."""
        def __init__(self, rank, texts):
            self.rank, self.texts = rank, texts

    def language_of(info):
        """The rank of a fence's language, and what stands behind the language on its line."""
        info = info.strip()
        word, _, rest = info.partition(" ")
        if info == "" or NEUTRAL.match(info):
            return 1, ""
        if PYTHON.match(info):
            return 2, rest
        if wrong(info + "\n    pass") is None or (rest and wrong(info) is None):
            return 1, info
        return 0, rest

    def fences(text):
        """The parts between Markdown's fences, and the text around them."""
        lines = text.split("\n")
        parts, around, at = [], [], 0
        while at < len(lines):
            line = lines[at]
            one = ONE_LINE.search(line)
            if one:
                parts.append(Part(2, [[one.group(1)]]))
                around.append("")
                at += 1
                continue
            opening = FENCE.match(line)
            if opening:
                before, fence, info = opening.group("before"), opening.group("fence"), opening.group("info")
                quoted = bool(QUOTE.match(before)) and ">" in before
                rank, rest = language_of(info)
                # Behind prose, only what is meant as a fence: the end of its line.
                if not (quoted or LIST.match(before) or fence[0] != "~" and (rank == 2 or not info.strip())):
                    opening = None
            if not opening:
                around.append(line)
                at += 1
                continue
            inner = [re.sub(r"^\s*> ?", "", part) if quoted else part for part in lines[at + 1 :]]
            ends, mark = [], fence[0]
            for i, part in enumerate(inner):
                bare = part.strip()
                if len(bare) >= len(fence) and not bare.strip(mark):
                    ends.append((inner[:i], at + i + 2))
                elif mark == "${TICK}" and bare.endswith(fence) and mark not in bare[: -len(fence)]:
                    kept = part[: part.rindex(fence)]
                    ends.append((inner[:i] + [kept], at + i + 2))
                else:
                    next_one = FENCE.match(part)
                    if next_one and next_one.group("fence")[0] == mark and LIST.match(next_one.group("before")):
                        ends.append((inner[:i], at + i + 1))
                if len(ends) == MAX_TRIES:
                    break
            if not ends:
                ends = [(inner, len(lines))]
            # A fence inside of a string ends no part: without what follows, the string is open.
            content, following = ends[0]
            if rank > 0:
                for candidate in ends:
                    if candidate[0] and wrong(textwrap.dedent("\n".join(candidate[0]))) is None:
                        content, following = candidate
                        break
            texts = [content, [rest] + content] if rest.strip() else [content]
            parts.append(Part(rank, texts))
            around.append("")
            at = following
        return parts, "\n".join(around)

    def segments(text):
        """The parts of a text with prose that are Python."""
        lines, parts, at = text.split("\n"), [], 0
        while at < len(lines) and len(parts) < MAX_SEGMENTS and budget[0] > 0:
            if not START.match(lines[at]):
                at += 1
                continue
            margin = len(lines[at]) - len(lines[at].lstrip())
            end = at + 1
            while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) >= margin):
                end += 1
            chunk = textwrap.dedent("\n".join(lines[at:end])).split("\n")
            # Most lines of prose that begin as Python does end so: their own error is found first.
            budget[0] -= sum(map(len, chunk))
            error = wrong("\n".join(chunk[:2]))
            is_open = isinstance(error, IndentationError) or "never closed" in str(error) or "triple" in str(error)
            if error is not None and not is_open and (getattr(error, "lineno", None) or 1) < 2:
                at += 1
                continue
            count = valid_lines(chunk)
            if count == 0:
                at += 1
                continue
            # A comment alone may be a heading of Markdown.
            if tree_of("\n".join(chunk[:count])).body:
                parts.append(Part(1, [chunk[:count]]))
            at += count
        return parts

    class Candidate:
        def __init__(self, part, sources, tree, score, untrimmed, continues=False):
            self.sources, self.tree, self.score, self.untrimmed = sources, tree, score, untrimmed
            # What defines a function comes before what may be its body.
            self.order = (score, not continues, part.rank > 0)

    def find(job):
        budget[0] = 1000000 + 50 * len(job["code"])
        head, tests, call = job["extract"]["head"], job["tests"], job["call"]
        head_lines = head.rstrip("\n").split("\n")
        # A head may be a function without any body.
        if wrong(head) is not None:
            head = "\n".join(head_lines) + "\n    pass"
        head_names = definitions(tree_of(head).body) if wrong(head) is None else {}
        known = {name for name, full in head_names.items() if full}
        if call is not None:
            needed = {call["name"]}
        elif tests is not None and wrong(tests) is None:
            needed = free_names(tree_of(tests)) - known
        else:
            needed = set()
        is_program = call is None and tests is None
        # A head that ends in a stub of what is called may be continued.
        continues = any(name in needed and not full for name, full in head_names.items())
        wanted = 7 if is_program else len(needed)

        def score_of(tree):
            if not is_program:
                names = definitions(tree.body)
                if call is not None and "Solution" in names:
                    return int(names.get("Solution." + call["name"], False))
                return sum(names.get(name, False) for name in needed)
            words = {node.attr if isinstance(node, ast.Attribute) else node.id
                     for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name))}
            strings = {node.value for node in ast.walk(tree)
                       if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            reads = words & {"input", "stdin", "open", "fileinput", "fdopen"} or "/dev/stdin" in strings
            reads = reads or ("os" in words and "read" in words)
            writes = words & {"print", "stdout", "write", "writelines"}
            closed = not (free_names(tree) - known)
            return 4 * bool(writes) + 2 * closed + (1 if reads or not job["hasInput"] else 0)

        def trimmed(lines, whole=False):
            kept = lines[: valid_lines(lines, whole)]
            body = tree_of("\n".join(kept)).body
            start, end = 0, len(body)
            while end - start > 1 and is_word(body[end - 1]):
                end -= 1
            while end - start > 1 and is_word(body[start]):
                start += 1
            until = body[end].lineno - 1 if end < len(body) else len(kept)
            return kept[first_line(body[start]) - 1 if start > 0 else 0 : until]

        def own(part, lines):
            kept = trimmed(lines)
            if not kept:
                return None
            text = "\n".join(kept)
            tree = tree_of(text)
            if not tree.body:
                return None
            return Candidate(part, [head, text] if head.strip() else [text], tree, score_of(tree), "\n".join(lines))

        def continuation(part, lines):
            """The answer as the body of the head's function."""
            found = list(forms(lines))
            indented = [[("    " + line) if line.strip() else "" for line in form] for form in found]
            raw = [line.replace("\xa0", " ") for line in lines]
            first = next((line for line in raw if line.strip()), "")
            best, most = None, len(head_lines)
            for body in ([raw] if first[:1] in (" ", "\t") else []) + indented:
                together = head_lines + body
                kept = trimmed(together, True)
                if len(kept) <= most:
                    continue
                text = "\n".join(kept)
                tree = tree_of(text)
                score = score_of(tree)
                if score >= wanted:
                    best, most = Candidate(part, [text], tree, score, text, True), len(kept)
            return best

        def best_of(part):
            best = None
            for lines in part.texts:
                for form in forms(lines):
                    candidate = own(part, form)
                    if candidate and (best is None or candidate.score > best.score):
                        best = candidate
                    if best and best.score >= wanted:
                        return best
            if continues:
                for lines in part.texts:
                    candidate = continuation(part, lines)
                    if candidate:
                        return candidate
            return best

        def pick(parts):
            chosen, candidates = None, []
            for part in parts:
                candidate = best_of(part)
                if candidate:
                    candidates.append(candidate)
                    if chosen is None or candidate.order >= chosen.order:
                        chosen = candidate
            return chosen, candidates

        def completed(chosen, candidates):
            """With the parts that define what the chosen one uses, the nearest before it first."""
            at = candidates.index(chosen)
            added, missing = [], free_names(chosen.tree) - known
            for other in candidates[:at][::-1] + candidates[at + 1 :]:
                names = {name for name, full in definitions(other.tree.body).items() if full}
                if missing & names and not (needed & names and not is_program):
                    added.insert(0, other.sources[-1])
                    missing = (missing - names) | (free_names(other.tree) - known)
            return chosen.sources[:-1] + added + chosen.sources[-1:]

        overall, raw = None, None
        for region in regions(clean(job["code"])):
            parts, around = fences(region)
            whole = Part(1, [region.split("\n")])
            if raw is None:
                likely = [part for part in parts if part.rank == 2] or parts or [whole]
                raw = "\n".join(likely[-1].texts[0])
            chosen, candidates = pick(parts or [whole])
            if chosen is None or chosen.score < wanted:
                more, others = pick(parts + segments(around))
                if more and (chosen is None or more.score > chosen.score):
                    chosen, candidates = more, others
            if chosen and (overall is None or chosen.score > overall[0].score):
                overall = chosen, candidates
            if chosen and chosen.score >= wanted:
                break
        if overall is None:
            return [head, textwrap.dedent(raw or job["code"])]
        chosen, candidates = overall
        # Without what the tests call, the answer's own error is told and not that of its first lines.
        if not is_program and chosen.score < wanted and wrong(chosen.untrimmed) is not None:
            return [head, chosen.untrimmed]
        return completed(chosen, candidates)

    return find, valid_lines

__find__, __valid_lines__ = __make_find__()
`;
