#!/usr/bin/env python3
"""Makes tests/golden/training/policy_loss.json: the losses of src/train/policy_loss.h and their gradients by PyTorch's
autograd, in float64, with the formulas as TRL's GRPOTrainer writes them (loss_type grpo and dapo,
importance_sampling_level token and sequence).

  make_policy_loss.py [FOLDER]      writes FOLDER/training/policy_loss.json
"""
import json
import pathlib
import sys

import torch


def advantages(rewards, group, scale):
    grouped = rewards.view(-1, group)
    mean = grouped.mean(dim=1).repeat_interleave(group)
    std = grouped.std(dim=1).repeat_interleave(group)
    centred = rewards - mean
    return centred / (std + 1e-6) if scale else centred


def loss_of(case, logps, old_logps, ref_logps, advantage, mask):
    log_ratio = logps - old_logps
    if case["kind"] == "gspo":
        log_weights = (log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)
        log_weights = log_weights.unsqueeze(-1)
    else:
        log_weights = log_ratio
    coef_1 = torch.exp(log_weights)
    coef_2 = torch.clamp(coef_1, 1 - case["clip_low"], 1 + case["clip_high"])
    per_token_loss = -torch.min(coef_1 * advantage.unsqueeze(1), coef_2 * advantage.unsqueeze(1))
    per_token_loss = per_token_loss.expand_as(mask)
    if case["beta"] != 0:
        per_token_kl = torch.exp(ref_logps - logps) - (ref_logps - logps) - 1
        per_token_loss = per_token_loss + case["beta"] * per_token_kl
    if case["kind"] == "dapo":
        return (per_token_loss * mask).sum() / mask.sum()
    return ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent) / "training"
    torch.manual_seed(20261125)
    torch.set_default_dtype(torch.float64)
    group, lengths = 4, [3, 1, 7, 5, 2, 6, 4, 7]
    cases = []
    for kind, low, high in (("grpo", 0.2, 0.2), ("dapo", 0.2, 0.28), ("gspo", 0.03, 0.04)):
        for beta in (0.0, 0.04):
            for scale in (True, False):
                case = {"kind": kind, "clip_low": low, "clip_high": high, "beta": beta, "group": group,
                        "advantage_std": scale}
                mask = torch.tensor([[1.0 if t < n else 0.0 for t in range(max(lengths))] for n in lengths])
                rewards = torch.rand(len(lengths)).round(decimals=2)
                old = -3 * torch.rand(mask.shape)
                new = (old + 0.25 * torch.randn(mask.shape)).requires_grad_()
                ref = old + 0.25 * torch.randn(mask.shape)
                advantage = advantages(rewards, group, scale)
                loss = loss_of(case, new, old, ref, advantage, mask)
                loss.backward()
                cut = lambda t: [row[:n].tolist() for row, n in zip(t, lengths)]
                case.update(rewards=rewards.tolist(), advantages=advantage.tolist(), logprob=cut(new.detach()),
                            old=cut(old), reference=cut(ref), loss=loss.item(), gradient=cut(new.grad))
                cases.append(case)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy_loss.json").write_text(json.dumps({"torch": torch.__version__, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
