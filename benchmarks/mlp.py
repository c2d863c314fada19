"""A network of one hidden tanh layer on a day of a province, from predictor planes to the field, against what a user would take.

Twelve planes as the pipeline has them: longitude and latitude (a row, a column), elevation, slope, aspect and land cover (once
for all days), LST, NDVI, EVI and ET (every day; LST is missing under clouds), day and overpass (a number a day). Peers are given
a table of the cells that have all values: making it, and putting what they predict back in its place, is part of what a user
waits for; "table at hand" leaves both out. Two networks: 12 neurons, as the paper's, and 120, as the mean of our 20 members has;
ensembles and the ridge under them are one network, hence one pass.
Run: python -m benchmarks mlp
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from sklearn.neural_network import MLPRegressor

from benchmarks.timing import medians, missing
from smscale.kernels import mlp, planes
from smscale.kernels.noise import fbm

#: Cells along latitude and longitude; shares of cells without LST; neurons.
ROWS, COLUMNS, CLOUDS, NEURONS = 750, 1500, (0.0, 0.3, 0.85), (12, 120)
REPEATS, THREADS = 5, (1, 2)
#: Rows that NumPy's user takes at once, so that a hidden layer stays in cache.
SLICE = 16384
#: Seconds.
PAUSE = 0.03

Run = Callable[[], object]


def scene(clouds: float, days: int = 1, seed: int = 0) -> list[np.ndarray]:
    """Twelve standardised planes, broadcastable to (days, ROWS, COLUMNS); the seventh is NaN under clouds."""
    rng = np.random.default_rng(seed)
    lon, lat = np.linspace(-1.7, 1.7, COLUMNS)[None, None], np.linspace(1.7, -1.7, ROWS)[None, :, None]
    static = [rng.normal(size=(1, ROWS, COLUMNS)) for _ in range(4)]
    daily = [rng.normal(size=(days, ROWS, COLUMNS)) for _ in range(4)]
    if clouds:
        x, y = np.broadcast_arrays(8 * lon[0], 8 * lat[0])
        for day, plane in enumerate(daily[0]):
            cover = fbm(x, y, day, 5, 0.6)
            plane[cover > np.quantile(cover, 1 - clouds)] = np.nan
    dated = [rng.normal(size=(days, 1, 1)) for _ in range(2)]
    return [plane.astype(np.float32) for plane in (lon, lat, *static, *daily, *dated)]


def table(fields: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 12) values of the cells that have all, and where they are."""
    whole = np.broadcast_arrays(*fields)
    known = np.isfinite(whole[0])
    for plane in whole[1:]:
        known &= np.isfinite(plane)
    return np.stack([plane[known] for plane in whole], axis=1), known


class Peers:
    """One network, in the ways that a user might run it on a table (n, 12)."""

    def __init__(self, neurons: int):
        rng = np.random.default_rng(1)
        self.w1, self.b1 = 0.3 * rng.normal(size=(12, neurons)), rng.normal(size=neurons)
        self.w2, self.b2 = rng.normal(size=neurons) / neurons, 0.1
        self.single = [np.float32(part) for part in (self.w1, self.b1, self.w2[:, None], [self.b2])]

    def runs(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """By name; those that are not installed are left out."""
        found = {"numpy": self.numpy, "numpy, slices in cache": self.sliced, "scikit-learn": self.sklearn().predict}
        for threads in THREADS:
            if not missing("torch"):
                found[f"torch, {threads} threads"] = self.torch(threads)
            if not missing("onnx", "onnxruntime"):
                found[f"onnxruntime, {threads} threads"] = self.onnx(threads)
        return found

    def numpy(self, X: np.ndarray) -> np.ndarray:
        w1, b1, w2, b2 = self.single
        return (np.tanh(X @ w1 + b1) @ w2 + b2)[:, 0]

    def sliced(self, X: np.ndarray) -> np.ndarray:
        return np.concatenate([self.numpy(X[at : at + SLICE]) for at in range(0, len(X), SLICE)])

    def sklearn(self) -> MLPRegressor:
        w1, b1, w2, b2 = self.single
        model = MLPRegressor(hidden_layer_sizes=b1.shape, activation="tanh").partial_fit(
            w1.T[:2], np.zeros(2, np.float32)
        )
        model.coefs_, model.intercepts_ = [w1, w2], [b1, b2]
        return model

    def torch(self, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        import torch

        w1, b1, w2, b2 = (torch.from_numpy(np.asarray(part)) for part in self.single)

        def run(X: np.ndarray) -> np.ndarray:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return torch.addmm(b2, torch.tanh(torch.addmm(b1, torch.from_numpy(X), w1)), w2)[:, 0].numpy()

        return run

    def onnx(self, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        import onnx
        import onnxruntime

        make = onnx.helper
        parts = [onnx.numpy_helper.from_array(v, n) for v, n in zip(self.single, ("w1", "b1", "w2", "b2"), strict=True)]
        nodes = [
            make.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
            make.make_node("Tanh", ["a"], ["t"]),
            make.make_node("Gemm", ["t", "w2", "b2"], ["y"]),
        ]
        float32 = onnx.TensorProto.FLOAT
        x, y = (make.make_tensor_value_info(n, float32, [None, k]) for n, k in (("x", 12), ("y", 1)))
        graph = make.make_graph(nodes, "mlp", [x], [y], parts)
        model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda X: session.run(None, {"x": X})[0][:, 0]


def field(fields: list[np.ndarray], predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What a user of a peer does with planes."""
    X, known = table(fields)
    out = np.full(known.shape, np.nan, np.float32)
    out[known] = predict(X)
    return out


def rested(runs: Mapping[str, Run]) -> dict[str, Run]:
    """A pause before each, in which threads of the one before stop waiting for more."""
    return {key: run for name, work in runs.items() for key, run in ((f"before {name}", pause), (name, work))}


def pause() -> None:
    time.sleep(PAUSE)


def compare(neurons: int, clouds: float) -> None:
    """Print medians of one network under so many clouds."""
    peers, fields = Peers(neurons), scene(clouds)
    X, known = table(fields)
    others = peers.runs()
    ours = lambda: mlp.predict_planes(fields, peers.w1, peers.b1, peers.w2, peers.b2)  # noqa: E731
    runs: dict[str, Run] = {"ours": ours}
    low, high, none = np.full(12, -2, np.float32), np.full(12, 2, np.float32), [None] * 12
    runs["ours, range of training"] = lambda: planes.outside(fields, low, high, none)
    runs |= {name: lambda predict=predict: field(fields, predict) for name, predict in others.items()}
    runs |= {f"{name}, table at hand": lambda predict=predict: predict(X) for name, predict in others.items()}
    apart = max(float(np.nanmax(np.abs(ours() - field(fields, predict)))) for predict in others.values())
    print(f"\n{neurons} neurons, {clouds:.0%} clouds: {known.size / 1e6:.3f} M cells, {known.sum() / 1e6:.3f} M known")
    print(f"  greatest difference from a peer: {apart:.1e} (values of {np.nanstd(ours()):.2f})")
    seconds = {name: value for name, value in medians(rested(runs), REPEATS).items() if name in runs}
    for name, value in seconds.items():
        print(f"  {name:42s} {value * 1e3:8.1f} ms   {value / seconds['ours']:6.1f} x")


def main() -> None:
    """Print the tables."""
    for neurons in NEURONS:
        for clouds in CLOUDS:
            compare(neurons, clouds)
    if absent := missing("onnx", "onnxruntime", "torch"):
        print(f"  not installed, so not measured: {', '.join(absent)}")


if __name__ == "__main__":
    main()
