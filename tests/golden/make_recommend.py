#!/usr/bin/env python3
"""Makes tests/golden/recommend.json: bags and their gradients by torch.nn.functional.embedding_bag and autograd, and the nearest rows
by sorting torch's scores and distances, in float64. All numbers are multiples of 1/8 below 4, so sums in float32 are exact.

  make_recommend.py [FOLDER]      writes FOLDER/recommend.json
"""
import json
import pathlib
import sys

import torch


def grid(*shape):
    return torch.randint(-31, 32, shape).double() / 8


def bag_case(mode, weighted):
    rows, columns, lengths = 9, 5, [3, 0, 1, 6, 4]
    table = grid(rows, columns).requires_grad_()
    ids = torch.randint(0, rows, (sum(lengths),))
    starts = [sum(lengths[:b]) for b in range(len(lengths) + 1)]
    weights = grid(len(ids)).requires_grad_() if weighted else None
    # Row 8 pads: PyTorch leaves it out of its bag, as an id outside the table is left out here.
    out = torch.nn.functional.embedding_bag(ids, table, torch.tensor(starts), mode=mode, per_sample_weights=weights,
                                            include_last_offset=True, padding_idx=rows - 1)
    dout = grid(*out.shape)
    out.backward(dout)
    case = {"mean": mode == "mean", "rows": rows - 1, "columns": columns, "table": table[:-1].flatten().tolist(),
            "ids": [-1 if i == rows - 1 else i for i in ids.tolist()], "offsets": starts, "out": out.flatten().tolist(),
            "dout": dout.flatten().tolist(), "dtable": table.grad[:-1].flatten().tolist()}
    if weighted:
        case["weights"] = weights.tolist()
        case["dweights"] = [0.0 if i == rows - 1 else g for i, g in zip(ids.tolist(), weights.grad.tolist())]
    return case


def search_case(metric):
    queries, table, k = grid(3, 6), grid(40, 6), 7
    scores = queries @ table.T if metric == "dot" else ((queries[:, None] - table[None]) ** 2).sum(-1)
    values, ids = torch.sort(scores, dim=1, stable=True, descending=metric == "dot")
    return {"metric": metric, "k": k, "columns": 6, "queries": queries.flatten().tolist(), "table": table.flatten().tolist(),
            "scores": values[:, :k].flatten().tolist(), "ids": ids[:, :k].flatten().tolist()}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    torch.manual_seed(20261126)
    golden = {"bags": [bag_case("sum", False), bag_case("sum", True), bag_case("mean", False)],
              "searches": [search_case("dot"), search_case("l2")]}
    with open(folder / "recommend.json", "w", encoding="utf-8") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
