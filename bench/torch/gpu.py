"""PyTorch beside `dultra_bench_cuda`: the same shapes on the same GPU, written plainly. One JSON line per measurement, as that program's."""

import json
import math

import torch
import torch.nn.functional as F

HIDDEN, MLP, VOCAB, LENGTH, LAYERS, HEADS, DIM = 4096, 12288, 126464, 512, 32, 32, 128
MASK = 126336


def report(name, work, moved, call):
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(30):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    times.sort()
    us = times[15]
    print(
        json.dumps(
            {
                "name": f"PyTorch, {name}",
                "us": round(us, 1),
                "us_p10": round(times[3], 1),
                "us_p90": round(times[27], 1),
                "tflops": round(work / us * 1e-6, 1),
                "gb_per_s": round(moved / us * 1e-3),
            },
            separators=(",", ":"),
        ),
        flush=True,
    )


def weight(rows, cols):
    return (torch.randn(rows, cols, device="cuda") * 0.02).to(torch.bfloat16)


def norm(x, scale):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * scale


def rope(x):
    inverse = 1 / 500000 ** (torch.arange(0, DIM, 2, device="cuda").float() / DIM)
    angle = torch.arange(LENGTH, device="cuda").float()[:, None] * inverse
    cosine, sine = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    wide = x.float()
    low, high = wide.chunk(2, -1)
    return (wide * cosine + torch.cat([-high, low], -1) * sine).to(x.dtype)


def draw(logits, temperature):
    """exp(logits) / (-log u)^T in float64, as LLaDA's sampler draws."""
    logits = logits.double()
    noise = (-torch.log(torch.rand_like(logits))) ** temperature
    return (logits.exp() / noise).argmax(-1)


@torch.no_grad()
def main():
    torch.manual_seed(0)
    x = torch.randn(LENGTH, HIDDEN, device="cuda", dtype=torch.bfloat16)
    wq, wk, wv, wo = (weight(HIDDEN, HIDDEN) for _ in range(4))
    gate, up, down, head = weight(MLP, HIDDEN), weight(MLP, HIDDEN), weight(HIDDEN, MLP), weight(VOCAB, HIDDEN)
    both = torch.cat([gate, up])
    scale = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    for m in (32, 128, LENGTH):
        moved = 2 * (2 * MLP * HIDDEN + m * (HIDDEN + 2 * MLP))
        report(f"gemm M={m} N=24576 K=4096", 2 * m * 2 * MLP * HIDDEN, moved, lambda m=m: x[:m] @ both.T)
    q, k, v = (torch.randn(1, HEADS, LENGTH, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        kind = getattr(torch.nn.attention.SDPBackend, backend, None)
        if kind is None:
            continue
        try:
            with torch.nn.attention.sdpa_kernel(kind):
                report(f"{backend.lower()} B=1 L=512 H=32 D=128", 4 * LENGTH * LENGTH * HIDDEN, 8 * LENGTH * HIDDEN, lambda: F.scaled_dot_product_attention(q, k, v))
        except RuntimeError as error:
            print(json.dumps({"skipped": backend, "why": str(error)[:200]}), flush=True)
    logits = torch.randn(32, VOCAB, device="cuda") * 3
    report("sample 32 x 126464 T=0.1, float64", 0, 4 * 32 * VOCAB, lambda: draw(logits, 0.1))

    def step():
        h = x
        for _ in range(LAYERS):
            n = norm(h, scale)
            heads = [rope((n @ w.T).view(LENGTH, HEADS, DIM).transpose(0, 1)) for w in (wq, wk)]
            values = (n @ wv.T).view(LENGTH, HEADS, DIM).transpose(0, 1)
            mixed = F.scaled_dot_product_attention(*(t[None] for t in (*heads, values)))[0]
            h = h + mixed.transpose(0, 1).reshape(LENGTH, HIDDEN) @ wo.T
            n = norm(h, scale)
            h = h + (F.silu(n @ gate.T) * (n @ up.T)) @ down.T
        scores = h @ head.T  # every row, as the reference does
        scores[:, MASK] = -math.inf
        return draw(scores, 0.1)

    block = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * MLP)
    report("step of 8B shape, B=1 L=512, head on all rows, float64 noise", LAYERS * (block * LENGTH + 4 * LENGTH * LENGTH * HIDDEN) + 2 * LENGTH * VOCAB * HIDDEN, LAYERS * block, step)


if __name__ == "__main__":
    main()
