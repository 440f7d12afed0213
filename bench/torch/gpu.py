"""PyTorch beside `dultra_bench_cuda`: cases of the same names on the same device, one JSON line each.

What a user of PyTorch has: SDPA with each of its backends, cuBLAS, a copy, and LLaDA-8B's shape with LLaDOU's planner written the way the reference
is: eager, bf16, logits of every row, float64 Gumbel noise, log-softmax over every row in training. Weights are random and made on the device.

    python3 gpu.py [--tiny] [--device cuda]

--tiny: shapes for any machine, also `--device cpu`; its times mean nothing.
"""

import argparse
import itertools
import json
import math
import time

import torch
import torch.nn.functional as F

FULL = dict(
    hidden=4096, mlp=12288, vocab=126464, prompt=256, generated=256, block=32, heads=32, layers=32, rollouts=12, steps=40, mask=126336,
    gemm_rows=(32, 128, 512, 6144), tokens=16384, attention_heads=16, attention_dim=128, lengths=(512, 1024, 2048, 4096), copied=128 << 20,
    training_layers=(2, 6), seconds=1.0,
)
TINY = dict(
    hidden=128, mlp=96, vocab=320, prompt=6, generated=8, block=4, heads=2, layers=3, rollouts=2, steps=3, mask=319,
    gemm_rows=(3, 14), tokens=64, attention_heads=2, attention_dim=64, lengths=(16, 32), copied=1 << 10,
    training_layers=(1, 2), seconds=0.0,
)


class Bench:
    def __init__(self, shapes, device):
        self.__dict__.update(shapes)
        self.device = torch.device(device)
        self.dtype = torch.bfloat16
        self.length = self.prompt + self.generated

    # ---- measuring ------------------------------------------------------------------------------------------------------------------

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def measure(self, call, seconds=None):
        """Microseconds of a call: (median, 10th, 90th percentile). Calls are queued some at a time, so that waiting does not count."""
        seconds = self.seconds if seconds is None else seconds
        for _ in range(2):
            call()
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        once = (time.perf_counter() - start) * 1e6
        count = int(max(1, min(50, 5000 / once))) if seconds > 0 else 1
        times = []
        begin = time.perf_counter()
        while len(times) < 3 or (len(times) < 200 and time.perf_counter() - begin < seconds):
            start = time.perf_counter()
            for _ in range(count):
                call()
            self.synchronize()
            times.append((time.perf_counter() - start) * 1e6 / count)
        times.sort()
        return times[len(times) // 2], times[len(times) // 10], times[min(len(times) - 1, len(times) * 9 // 10)]

    def report(self, case, by, times, work=0.0, moved=0.0, note=""):
        median, low, high = times
        line = {
            "case": case, "by": by, "us": round(median, 2), "us_p10": round(low, 2), "us_p90": round(high, 2),
            "tflops": float(f"{work / median * 1e-6:.4g}"), "gb_per_s": float(f"{moved / median * 1e-3:.4g}"), "note": note,
        }
        print(json.dumps(line, separators=(",", ":")), flush=True)

    def attempt(self, case, by, body):
        """What does not fit, or is not there, is said, and does not stop the rest."""
        try:
            body()
        except (RuntimeError, AttributeError) as error:  # out of memory is a RuntimeError
            why = " ".join(str(error).split())[:200].replace('"', "'").replace("\\", "/")
            print(json.dumps({"skipped": case, "by": by, "why": why}, separators=(",", ":")), flush=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def normal(self, *shape, scale=1.0):
        return (torch.randn(*shape, device=self.device) * scale).to(self.dtype)

    # ---- kernels --------------------------------------------------------------------------------------------------------------------

    def products(self):
        """A layer's products; "cold": of the fewest rows, with weights that no cache holds."""
        hidden, mlp = self.hidden, self.mlp
        x = self.normal(self.gemm_rows[-1], max(hidden, mlp))
        for n, k in ((2 * mlp, hidden), (hidden, hidden), (2 * hidden, hidden), (hidden, mlp)):
            count = max(1, math.ceil((300 << 20) / (2 * n * k))) if self.seconds > 0 else 1
            weights = [self.normal(n, k, scale=0.02) for _ in range(count)]
            for m, cold in [(m, False) for m in self.gemm_rows] + [(self.gemm_rows[0], True)]:
                moved = 2 * (n * k + m * (n + k))
                turns = itertools.cycle(weights if cold else weights[:1])
                rows = x.view(-1)[: m * k].view(m, k)
                times = self.measure(lambda rows=rows, turns=turns: rows @ next(turns).t())
                self.report(f"gemm M={m} N={n} K={k}{' cold' if cold else ''}", "torch cuBLAS", times, 2 * m * n * k, moved)

    def attention(self):
        heads, dim = self.attention_heads, self.attention_dim
        module = getattr(torch.nn, "attention", None)
        backends = []
        for by, name in (("torch flash", "FLASH_ATTENTION"), ("torch cuDNN", "CUDNN_ATTENTION")):
            kind = getattr(getattr(module, "SDPBackend", None), name, None)
            if kind is not None:
                backends.append((by, kind))
        if not backends:
            backends = [("torch SDPA", None)]
        for length in self.lengths:
            batch = self.tokens // length
            work = 4 * self.tokens * length * heads * dim
            q, k, v, dout = (self.normal(batch, heads, length, dim) for _ in range(4))
            for by, kind in backends:

                def run(by=by, kind=kind):
                    for t in (q, k, v):
                        t.requires_grad_(False)
                    with choose(kind), torch.no_grad():
                        self.report(f"attention forward T={length}", by, self.measure(lambda: sdpa(q, k, v)), work)
                    for t in (q, k, v):
                        t.requires_grad_(True)
                    with choose(kind):
                        out = sdpa(q, k, v)
                        # Gradients alone: the graph is kept from call to call.
                        backward = self.measure(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
                        self.report(f"attention backward T={length}", by, backward, 2.5 * work)

                self.attempt(f"attention T={length}", by, run)

    def copy(self):
        a = torch.randn(self.copied, device=self.device)
        b = torch.empty_like(a)
        self.report("copy", "torch copy_", self.measure(lambda: b.copy_(a)), 0, 8 * self.copied)

    def sampler(self):
        logits = torch.randn(32, self.vocab, device=self.device) * 3
        for temperature in (0, 0.1, 1):
            self.report(f"sampler, 32 rows, temperature {temperature}", "torch eager", self.measure(lambda t=temperature: draw(logits, t)), 0, 4 * 32 * self.vocab)

    # ---- a model of 8B's shape -----------------------------------------------------------------------------------------------------

    def denoising(self):
        model = Model(self, self.layers)
        ids = masked_rows(self, 1)
        # Every row's logits, so more work than a block's alone: but the same answer is what counts.
        work = pass_work(self, self.layers + 1, self.length) + 2 * self.length * self.vocab * self.hidden
        note = "with the planner, logits of every row"

        @torch.no_grad()
        def step():
            return model.step(ids, temperature=0.1)

        self.report("denoising step", "torch eager", self.measure(step, 2 * self.seconds), work, 0, note)

    def training(self):
        parts = []
        for layers in self.training_layers:
            model = Model(self, layers)
            ids = masked_rows(self, self.rollouts)
            with torch.no_grad():
                rollout = self.measure(lambda: model.step(ids, temperature=0.1), 2 * self.seconds)[0]
            parameters = model.parameters()
            for p in parameters:
                p.requires_grad_(True)
            tokens = torch.randint(0, self.vocab - 1, ids.shape, device=self.device)
            picked = ids == self.mask
            picked[:, self.prompt + self.block :] = False
            picked &= torch.rand(ids.shape, device=self.device) < 0.2

            def replay():
                logits, planner = model.forward(ids)
                logits = logits.float()
                logits[..., self.mask] = -math.inf
                chosen = F.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]  # every row, as the reference does
                likelihood = torch.where(picked, chosen + F.logsigmoid(planner), F.logsigmoid(-planner))
                (-likelihood.mean()).backward()

            times = self.measure(replay, 2 * self.seconds)[0]
            optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0)

            def update():
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()

            parts.append((rollout, times, self.measure(update, self.seconds)[0]))
            del model, parameters, optimizer
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        low, high = self.training_layers

        def at(part):
            return parts[0][part] + (parts[1][part] - parts[0][part]) / (high - low) * (self.layers - low)

        rollout, replay_us, update_us = at(0), at(1), at(2)
        whole = self.steps * (rollout + replay_us) + update_us
        note = (
            f"reckoned for {self.layers} layers from micro-batches of {self.rollouts} x {self.length} tokens at {low} and {high} layers: rollout pass "
            f"{rollout / 1e3:.1f} ms, forward and backward {replay_us / 1e3:.1f} ms, {self.steps} times each, update {update_us / 1e3:.1f} ms (bf16 state)"
        )
        work = self.steps * 4 * pass_work(self, self.layers + 1, self.rollouts * self.length)
        self.report("training step", "torch eager", (whole, whole, whole), work, 0, note)


class choose:
    """Runs SDPA with one backend; None: with what PyTorch picks."""

    def __init__(self, kind):
        self.context = None if kind is None else torch.nn.attention.sdpa_kernel(kind)

    def __enter__(self):
        if self.context:
            self.context.__enter__()

    def __exit__(self, *error):
        return self.context.__exit__(*error) if self.context else None


def sdpa(q, k, v):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v  # PyTorch 1


def pass_work(s, blocks, tokens):
    """Floating-point operations of a pass of whole rows."""
    return blocks * tokens * (2 * (4 * s.hidden**2 + 3 * s.hidden * s.mlp) + 4 * s.length * s.hidden)


def masked_rows(s, rows):
    ids = torch.randint(0, s.vocab - 2, (rows, s.length), device=s.device)
    ids[:, s.prompt :] = s.mask
    return ids


def norm(x, scale):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * scale


def rope(x):
    """x (B, H, T, D), angles and products in fp32."""
    length, dim = x.shape[-2:]
    inverse = 1 / 500000 ** (torch.arange(0, dim, 2, device=x.device).float() / dim)
    angle = torch.arange(length, device=x.device).float()[:, None] * inverse
    cosine, sine = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    wide = x.float()
    low, high = wide.chunk(2, -1)
    return (wide * cosine + torch.cat([-high, low], -1) * sine).to(x.dtype)


def draw(logits, temperature):
    """exp(logits) / (-log u)^T in float64, as LLaDA's sampler draws."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double()
    noise = (-torch.log(torch.rand_like(logits))) ** temperature
    return (logits.exp() / noise).argmax(-1)


class Model:
    def __init__(self, s, layers):
        c, f = s.hidden, s.mlp
        self.s = s

        def weight(rows, cols):
            return s.normal(rows, cols, scale=0.0115)

        def block():
            names = {"q": (c, c), "k": (c, c), "v": (c, c), "o": (c, c), "gate": (f, c), "up": (f, c), "down": (c, f)}
            made = {name: weight(*shape) for name, shape in names.items()}
            made["norm1"], made["norm2"] = torch.ones(c, device=s.device, dtype=s.dtype), torch.ones(c, device=s.device, dtype=s.dtype)
            return made

        self.table, self.head = weight(s.vocab, c), weight(s.vocab, c)
        self.blocks = [block() for _ in range(layers)]
        self.final = torch.ones(c, device=s.device, dtype=s.dtype)
        self.planner = block()
        self.time1, self.time2 = weight(c, 256), weight(c, c)
        self.mask_embedding = weight(2, c)
        self.modulation = [weight(2 * c, c), weight(2 * c, c)]
        self.linear = weight(1, c)

    def parameters(self):
        own = [self.table, self.head, self.final, self.time1, self.time2, self.mask_embedding, *self.modulation, self.linear]
        return own + [w for block in (*self.blocks, self.planner) for w in block.values()]

    def block(self, w, h):
        batch, length, c = h.shape
        n = norm(h, w["norm1"])

        def heads(name):
            return (n @ w[name].t()).view(batch, length, self.s.heads, -1).transpose(1, 2)

        mixed = sdpa(rope(heads("q")), rope(heads("k")), heads("v"))
        h = h + mixed.transpose(1, 2).reshape(batch, length, c) @ w["o"].t()
        n = norm(h, w["norm2"])
        return h + (F.silu(n @ w["gate"].t()) * (n @ w["up"].t())) @ w["down"].t()

    def forward(self, ids):
        """Logits of every row, and planner logits."""
        s = self.s
        h = self.table[ids]
        for w in self.blocks:
            h = self.block(w, h)
        h = norm(h, self.final)
        masks = ids == s.mask
        timestep = 1 - masks.float().mean(-1)
        frequency = torch.exp(-math.log(10000) * torch.arange(128, device=s.device).float() / 128)
        angle = timestep[:, None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], -1).to(s.dtype)
        condition = (F.silu(features @ self.time1.t()) @ self.time2.t())[:, None] + self.mask_embedding[masks.long()]

        def adaln(x, modulation):
            scale, shift = (condition @ modulation.t()).chunk(2, -1)  # of every position
            return F.layer_norm(x, x.shape[-1:], eps=1e-4) * (1 + scale) + shift

        y = self.block(self.planner, adaln(h, self.modulation[0]))
        planner = (adaln(y, self.modulation[1]) @ self.linear.t())[..., 0]
        return h @ self.head.t(), planner.float()

    def step(self, ids, temperature):
        """One step of the planner's top-k rule on the first block."""
        s = self.s
        logits, planner = self.forward(ids)
        logits[..., s.mask] = -math.inf
        drawn = draw(logits, temperature)
        window = ids == s.mask
        window[:, s.prompt + s.block :] = False
        probability = torch.sigmoid(planner) * window
        out = ids.clone()
        for row in range(ids.shape[0]):
            k = max(1, int(probability[row].sum()))
            chosen = torch.topk(probability[row], k).indices
            out[row, chosen] = drawn[row, chosen]
        return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    bench = Bench(TINY if args.tiny else FULL, args.device)
    name = torch.cuda.get_device_name(0) if bench.device.type == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__}, separators=(",", ":")), flush=True)
    bench.attempt("gemm", "torch cuBLAS", bench.products)
    bench.attempt("attention", "torch", bench.attention)
    bench.attempt("copy", "torch copy_", bench.copy)
    bench.attempt("sampler", "torch eager", bench.sampler)
    bench.attempt("denoising step", "torch eager", bench.denoising)
    bench.attempt("training step", "torch eager", bench.training)


if __name__ == "__main__":
    main()
