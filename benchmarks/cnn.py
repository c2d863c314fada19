"""The convolutional network on predictor planes: its share of the machine's matrix product rate, and torch, onnxruntime, beside it.

Two networks: the default (five members of 8, 8, 16, 16 channels) and the paper's (one of 16, 16, 32, 32). Rates count the true
floating-point operations of the convolutions and the last layer: two for each weight that meets a number; padding, rectifiers, pooling
and the ridge under the networks are not counted. The matrix product is NumPy's BLAS, large (`SIZE`) and of the shape that the
second layer has as im2col. Peers are given the standardised rows at hand, in batches that stay in cache; ours starts from planes.
torch.compile is measured where it works (it needs a C++ compiler and Python's headers).
Run: python -m benchmarks cnn
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.timing import medians, missing
from smscale.kernels import planes
from smscale.models.cnn import cnn_from_arrays
from smscale.models.cnn.layers import CNNPredictor

#: Cells of the block: steps, rows, columns; share without LST under clouds; rows of a peer's batch; side of the matrices.
BLOCK, CLOUDS, BATCH, SIZE = (1, 256, 256), 0.85, 2048, 2048
NETWORKS = {"default, 5 members": ((8, 8, 16, 16), 5), "paper": ((16, 16, 32, 32), 1)}
PREDICTORS, REPEATS = 12, 3
Run = Callable[[], object]


def operations(filters: tuple[int, ...], members: int) -> int:
    """Floating-point operations of a cell."""
    count, length, channels = 0, PREDICTORS, 1
    for width in filters:
        for _ in range(2):
            count += 2 * 3 * channels * width * length
            channels = width
        length = -(-length // 2)
    return members * (count + 2 * length * channels)


def networks(filters: tuple[int, ...], members: int):  # type: ignore[no-untyped-def]
    """The same untrained network for torch and for us."""
    import torch

    from smscale.models.cnn.lightning import Network, Settings

    network = Network(PREDICTORS, members, Settings(1, filters, 0.0, 0.01, 0.0, 0.0, 32, 1, 0, seed=1)).eval()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(network.dense.weight, std=0.1, generator=generator)
    arrays = network.to_arrays()
    arrays["dense_bias"] = arrays["dense_bias"].sum(keepdims=True)
    arrays |= {"mean": np.zeros(PREDICTORS), "scale": np.ones(PREDICTORS), "linear": np.zeros(PREDICTORS)}
    arrays |= {"target": np.array([0.0, 1.0]), "low": np.full(PREDICTORS, -9.0), "high": np.full(PREDICTORS, 9.0)}
    return network, cnn_from_arrays(arrays)


def in_batches(X: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The members' sum for rows (n, k)."""
    return np.concatenate([predict(X[at : at + BATCH]).sum(axis=1) for at in range(0, len(X), BATCH)])


def peers(network, X: np.ndarray) -> dict[str, Run]:  # type: ignore[no-untyped-def]
    """Those that work here, on rows (n, k)."""
    import torch

    def eager(rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(rows)).numpy()

    runs: dict[str, Run] = {"torch eager": lambda: in_batches(X, eager)}
    for name, make in {"torch.compile": compiled, "onnxruntime": onnx}.items():
        try:
            predict = make(network)
            np.testing.assert_allclose(
                in_batches(X[: 2 * BATCH], predict), in_batches(X[: 2 * BATCH], eager), atol=1e-4
            )
            runs[name] = lambda predict=predict: in_batches(X, predict)
        except Exception as error:  # whatever a peer's tool chain lacks here
            print(f"  {name} does not work here, so it is not measured: {str(error).strip().splitlines()[0][:100]}")
    return runs


def compiled(network) -> Callable[[np.ndarray], np.ndarray]:  # type: ignore[no-untyped-def]
    import torch

    made = torch.compile(network, dynamic=True)

    def run(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return made(torch.from_numpy(rows)).numpy()

    return run


def onnx(network) -> Callable[[np.ndarray], np.ndarray]:  # type: ignore[no-untyped-def]
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore"),
    ):  # of tracing, which is checked
        path = str(Path(folder) / "cnn.onnx")
        given = torch.zeros(BATCH, PREDICTORS)
        torch.onnx.export(network, (given,), path, input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {"x": rows})[0]


def scene(clouds: float) -> list[np.ndarray]:
    """Standardised planes, broadcastable to `BLOCK`; the last lacks a share of its cells."""
    rng = np.random.default_rng(0)
    shapes = [
        (1, 1, BLOCK[2]),
        (1, BLOCK[1], 1),
        *[(1, *BLOCK[1:])] * 4,
        (BLOCK[0], 1, 1),
        (BLOCK[0], 1, 1),
        *[BLOCK] * 4,
    ]
    fields = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    fields[-1][rng.random(BLOCK) < clouds] = np.nan
    return fields


def compare(name: str, filters: tuple[int, ...], members: int, threads: int) -> None:
    """Print the rates of one network."""
    network, ours = networks(filters, members)
    fields, clouded = scene(0.0), scene(CLOUDS)
    X = np.stack([plane.ravel() for plane in np.broadcast_arrays(*fields)], axis=1)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, SIZE, SIZE)).astype(np.float32)
    tall, thin = (
        rng.normal(size=s).astype(np.float32) for s in ((BATCH, 3 * filters[0]), (3 * filters[0], filters[0]))
    )
    product = np.empty((BATCH, filters[0]), np.float32)

    def skinny() -> None:
        for _ in range(200):
            np.matmul(tall, thin, out=product)

    each, cells = operations(filters, members), int(np.prod(BLOCK))
    print(f"\n{name}, {threads} threads: {each} operations a cell, {cells} cells")
    runs: dict[str, Run] = {
        "ours, from planes": lambda: planes.by_rows(fields, ours.predict),
        f"ours, {CLOUDS:.0%} clouds": lambda: planes.by_rows(clouded, ours.predict),
        f"matrix product, {SIZE} cubed": lambda: a @ b,
        f"matrix product, {BATCH} x {3 * filters[0]} x {filters[0]}": skinny,
        **peers(network, X),
    }
    counted = dict.fromkeys(runs, each * cells)
    counted |= dict(
        zip(
            list(runs)[1:4],
            [each * int(np.isfinite(clouded[-1]).sum()), 2 * SIZE**3, 400 * tall.size * filters[0]],
            strict=True,
        )
    )
    check(ours, network, X)
    seconds = medians(runs, REPEATS)
    rates = {run: counted[run] / value / 1e9 for run, value in seconds.items()}
    best = rates[f"matrix product, {SIZE} cubed"]
    for run, rate in rates.items():
        print(
            f"  {run:36s} {seconds[run] * 1e3:9.1f} ms {rate:7.1f} GFLOP/s, {rate / best:5.0%} of the large matrix product's"
        )


def check(ours: CNNPredictor, network, X: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    """Print how far the two are apart."""
    import torch

    with torch.inference_mode():
        expected = network(torch.from_numpy(X[:BATCH])).numpy().sum(axis=1)
    apart = np.abs(ours.predict(X[:BATCH]) - expected).max()
    print(f"  greatest difference from torch: {apart:.1e} (values of {expected.std():.2f})")


def main() -> None:
    """Print the tables, with one thread and with two."""
    if absent := missing("torch", "onnxruntime"):
        print(f"not installed: {', '.join(absent)}")
        if "torch" in absent:
            return
    import torch

    for threads in (1, 2):
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            for name, (filters, members) in NETWORKS.items():
                compare(name, filters, members, threads)


if __name__ == "__main__":
    main()
