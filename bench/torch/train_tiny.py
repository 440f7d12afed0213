"""Training steps of the embedded word-problem model in plain eager PyTorch: the yardstick for dultra's trainer.

Debian: apt-get install python3-torch libopenblas0-pthread; then /usr/bin/python3 bench/torch/train_tiny.py [--threads 1] [--seconds 3]

Prints one JSON line per kind of step: milliseconds of the clock (median, 10th and 90th percentile) and of CPU time.
  pretrain      LLaDA loss on 64 rows of 38 tokens, backward, clipping, AdamW
  planner-init  base frozen: BCE of the planner on 64 rows against the factor rule's choice, backward, AdamW on the planner
  grpo-rollout  192 rollouts (16 prompts of 12), one denoising step: planner and Bernoulli draws, Gumbel draws of the masked positions' tokens
  grpo-replay   the same 192 at one denoising step: log-likelihood of what was unmasked, clipped ratio, backward
  grpo-update   clipping and AdamW, once per iteration after all replayed steps
"""
import argparse
import json
import math
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seconds", type=float, default=3, help="budget of one measurement")
args = parser.parse_args()
# Debian's torch sets its own threads but not OpenBLAS's, which are read from here when the library is loaded.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

VOCAB, MASK, WIDTH, LAYERS, HEADS, MLP = 129, 1, 64, 3, 4, 192
PROMPT, ANSWER = 14, 24
LENGTH = PROMPT + ANSWER
THETA, TIME_FEATURES = 100.0, 256


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x, cosine, sine):
    low, high = x.chunk(2, -1)
    return x * cosine + torch.cat([-high, low], -1) * sine


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm, self.ff_norm = RMSNorm(), RMSNorm()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(WIDTH, MLP, bias=False), nn.Linear(WIDTH, MLP, bias=False), nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, x, cosine, sine):
        rows, length, _ = x.shape
        n = self.attn_norm(x)
        q, k, v = (p(n).view(rows, length, HEADS, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(rows, length, WIDTH))
        n = self.ff_norm(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Planner(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.mask_embedding = nn.Embedding(2, WIDTH)
        self.modulation1, self.modulation2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.block = Block()
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, hidden, t, candidate, cosine, sine):
        half = TIME_FEATURES // 2
        angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        condition = self.time(torch.cat([angle.cos(), angle.sin()], -1))[:, None] + self.mask_embedding(candidate.long())
        scale, shift = self.modulation1(condition).chunk(2, -1)
        x = self.block(F.layer_norm(hidden, (WIDTH,), eps=1e-4) * (1 + scale) + shift, cosine, sine)
        scale, shift = self.modulation2(condition).chunk(2, -1)
        return self.linear(F.layer_norm(x, (WIDTH,), eps=1e-4) * (1 + scale) + shift).squeeze(-1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = RMSNorm()
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.planner = Planner()
        size = WIDTH // HEADS
        angle = torch.outer(torch.arange(LENGTH).float(), THETA ** (-torch.arange(0, size, 2).float() / size)).repeat(1, 2)
        self.register_buffer("cosine", angle.cos())
        self.register_buffer("sine", angle.sin())

    def hidden(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        return self.norm(x)

    def plan(self, hidden, ids):
        masked = ids == MASK
        return self.planner(hidden, 1 - masked.float().mean(-1), masked, self.cosine, self.sine)

    def base_parameters(self):
        return [p for name, p in self.named_parameters() if not name.startswith("planner.")]


def masked_rows(clean):
    """Answers masked with probability t ~ U(0, 1) per row, floor 1e-3; the masked ids and each row's probability."""
    p = (1 - 1e-3) * torch.rand(len(clean), 1) + 1e-3
    hide = torch.rand(clean.shape) < p
    hide[:, :PROMPT] = False
    return torch.where(hide, torch.tensor(MASK), clean), p


def make_steps():
    torch.manual_seed(1)
    model = Model()
    clean = torch.randint(2, VOCAB, (64, LENGTH))
    base = torch.optim.AdamW(model.base_parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1)
    planner = torch.optim.AdamW(model.planner.parameters(), lr=1e-3)
    both = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1)

    def pretrain():
        ids, p = masked_rows(clean)
        masked = ids == MASK
        losses = F.cross_entropy(model.head(model.hidden(ids)).flatten(0, 1), clean.flatten(), reduction="none").view_as(ids)
        loss = (losses * masked / p).sum() / (len(ids) * ANSWER)
        base.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.base_parameters(), 1.0)
        base.step()

    def planner_init():
        ids, _ = masked_rows(clean)
        masked = ids == MASK
        with torch.no_grad():
            hidden = model.hidden(ids)
            confidence = model.head(hidden).softmax(-1).amax(-1).masked_fill(~masked, -1)
            ordered, order = confidence.sort(-1, descending=True)
            passes = ordered >= 1 - 1.0 / (torch.arange(LENGTH) + 2)
            passes[:, 0] = True
            label = torch.zeros_like(confidence).scatter(1, order, passes.cumprod(-1).float())[masked]
        logit = model.plan(hidden, ids)[masked]
        positive = label.sum()
        loss = F.binary_cross_entropy_with_logits(logit, label, pos_weight=(len(label) - positive) / positive.clamp(min=1))
        planner.zero_grad()
        loss.backward()
        planner.step()

    rollouts, _ = masked_rows(torch.randint(2, VOCAB, (192, LENGTH)))
    candidates = rollouts == MASK
    chosen = candidates & (torch.rand(rollouts.shape) < 0.3)
    tokens = torch.randint(2, VOCAB, rollouts.shape)
    advantage = torch.randn(192)
    old = torch.zeros(192)

    @torch.no_grad()
    def rollout():
        hidden = model.hidden(rollouts)
        unmask = (torch.rand(rollouts.shape) < torch.sigmoid(model.plan(hidden, rollouts))) & candidates
        logits = model.head(hidden[candidates])
        drawn = (logits - 0.5 * torch.log(-torch.log(torch.rand(logits.shape)))).argmax(-1)
        log_prob = logits.log_softmax(-1).gather(-1, drawn[:, None])
        filled = rollouts.masked_scatter(candidates, drawn)
        return torch.where(unmask, filled, rollouts), log_prob

    def replay():
        hidden = model.hidden(rollouts)
        logit = model.plan(hidden, rollouts)
        log_prob = model.head(hidden[chosen]).log_softmax(-1).gather(-1, tokens[chosen][:, None]).squeeze(-1)
        likelihood = torch.where(chosen, F.logsigmoid(logit), F.logsigmoid(-logit)) * candidates
        total = likelihood.masked_scatter(chosen, likelihood[chosen] + log_prob).sum(-1)
        ratio = (total - old - (total - old).detach()).exp()  # 1 at the first update, as in training
        loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 2) * advantage).sum() / (192 * ANSWER)
        loss.backward()

    def update():
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        both.step()

    return {"pretrain": pretrain, "planner-init": planner_init, "grpo-rollout": rollout, "grpo-replay": replay, "grpo-update": update}


def main():
    torch.set_num_threads(args.threads)
    steps = make_steps()
    for name, step in steps.items():
        for _ in range(5):
            step()
        clock, cpu = [], []
        end = time.perf_counter() + args.seconds
        while time.perf_counter() < end or len(clock) < 5:
            start, start_cpu = time.perf_counter(), time.process_time()
            step()
            clock.append(1e3 * (time.perf_counter() - start))
            cpu.append(1e3 * (time.process_time() - start_cpu))
        tenths = statistics.quantiles(clock, n=10)
        row = {"ms": statistics.median(clock), "ms_p10": tenths[0], "ms_p90": tenths[-1], "cpu_ms": statistics.median(cpu)}
        row = {key: round(value, 3) for key, value in row.items()}
        print(json.dumps({"step": name, "threads": args.threads, **row, "runs": len(clock), "torch": torch.__version__}), flush=True)


main()
