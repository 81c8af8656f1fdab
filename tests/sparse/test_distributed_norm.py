"""Batch norm over processes equals batch norm of one process that has all the voxels."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from olivine.train.sparse import BatchNorm, SparseTensor, share_norms

SIZES = (70, 31)


def data(dtype):
    generator = torch.Generator().manual_seed(0)
    feature = (torch.randn(sum(SIZES), 6, generator=generator, dtype=torch.float64) * 3 + 100).to(dtype)
    weight = torch.randn(sum(SIZES), 6, generator=generator, dtype=torch.float64).to(dtype)
    return feature, weight


def run(feature, weight, norm):
    coordinate = torch.zeros(len(feature), 4, dtype=torch.int32)
    coordinate[:, 1] = torch.arange(len(feature))
    feature = feature.clone().requires_grad_()
    out = norm(SparseTensor(feature, coordinate)).feature
    (out * weight).sum().backward()
    gradients = (norm.bn.weight.grad, norm.bn.bias.grad)
    return [t.detach() for t in (out, feature.grad, *gradients, norm.bn.running_mean, norm.bn.running_var)]


def make_norm(dtype):
    norm = BatchNorm(6, momentum=0.3).to(dtype)
    with torch.no_grad():
        norm.bn.weight.copy_(torch.linspace(0.5, 2, 6))
        norm.bn.bias.copy_(torch.linspace(-1, 1, 6))
    return norm


DTYPES = {torch.float64: 1e-11, torch.float32: 2e-4}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(SIZES))
    results = {}
    for dtype in DTYPES:
        feature, weight = data(dtype)
        norm = make_norm(dtype)
        assert share_norms(norm, dist.group.WORLD) == 1
        rows = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
        results[str(dtype)] = run(feature[rows], weight[rows], norm)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_clouds_normalise_as_one(tmp_path):
    mp.start_processes(worker, (str(tmp_path),), nprocs=len(SIZES), start_method="spawn")
    out, gradient, weight, bias, mean, variance = run(*data(torch.float64), make_norm(torch.float64))
    for dtype, tolerance in DTYPES.items():
        parts = [torch.load(tmp_path / f"{rank}.pt")[str(dtype)] for rank in range(len(SIZES))]
        close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
        torch.testing.assert_close(torch.cat([p[0] for p in parts]), out, **close)
        torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, **close)
        torch.testing.assert_close(parts[0][2] + parts[1][2], weight, **close)
        torch.testing.assert_close(parts[0][3] + parts[1][3], bias, **close)
        for part in parts:
            torch.testing.assert_close(part[4], mean, **close)
            torch.testing.assert_close(part[5], variance, **close)
        assert torch.equal(parts[0][4], parts[1][4]) and torch.equal(parts[0][5], parts[1][5])
