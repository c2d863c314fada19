"""What the integers in MODIS and VIIRS land products mean: scales, fills, valid ranges, quality bits and policies.

Tables: modis_tables.json, viirs_tables.json; nothing here opens a file. What each policy accepts:

===========  ==========================================  ======================================================
product      strict                                      paper
===========  ==========================================  ======================================================
MxD11A1      mandatory QA 00                             mandatory QA 00 or 01 with LST error at most 2 K
VIIRS 21A1   mandatory QA 00, clear                      mandatory QA 00 or 01, clear, with LST error at most 2 K
MxD13A2      pixel reliability 0 (good)                  0 or 1 (marginal)
VIIRS 13A2   pixel reliability 0 or 1 (good)             0 to 3 (marginal)
MxD16A2      main algorithm, clear                       any algorithm, not under significant cloud
MCD12Q1      every class                                 every class
===========  ==========================================  ======================================================

Both leave out values beyond the schema's physical limits too; "none" keeps every value that is no fill and within the
product's own valid range. The paper says only that cloud, rain and low quality were left out: the `paper` rules are
our reading of that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.kernels.lookup import Coded
from smscale.schema import LAND_COVER_FILL, VARIABLES, WATER
from smscale.sources.files import Kind

Policy = Literal["strict", "paper", "none"]

SUPPORTED = (
    "MOD11A1, MYD11A1, MOD13A2, MYD13A2, MOD16A2, MYD16A2 (and GF), MCD12Q1, collections 6 and 6.1; "
    "VNP21A1D, VNP21A1N, VNP13A2 and those of VJ1, VJ2"
)
#: Instrument and platform by the first three letters of a product.
_SENSORS = {
    "MOD": ("MODIS", "Terra"),
    "MYD": ("MODIS", "Aqua"),
    "MCD": ("MODIS", "Terra+Aqua"),
    "VNP": ("VIIRS", "Suomi-NPP"),
    "VJ1": ("VIIRS", "NOAA-20"),
    "VJ2": ("VIIRS", "NOAA-21"),
}
#: What a raw value is: an entry of the tables of `states`.
GOOD, FILL, BEYOND = 0, 1, 2
#: Slack of the physical limits, for scales that binary fractions only come near to.
_SLACK = 1e-9


@dataclass(frozen=True)
class Layer:
    """One layer of a product: where it is stored and what its integers mean. `scale` is None for classes."""

    name: str
    data_set: str
    variable: str
    quality: str
    fill: tuple[int, ...]
    valid: tuple[int, int]
    scale: float | None
    products: str

    @property
    def dtype(self) -> np.dtype:
        """Type of the decoded values."""
        return np.dtype(np.uint8 if self.scale is None else np.float32)


@dataclass(frozen=True)
class Field:
    """Some bits of a quality word."""

    name: str
    shift: int
    bits: int
    meanings: Mapping[int, str]

    def of(self, words: NDArray) -> NDArray[np.int64]:
        """The field's value in each word."""
        return (words.astype(np.int64) >> self.shift) & ((1 << self.bits) - 1)

    def meaning(self, value: int) -> str:
        """What one value of the field says."""
        return self.meanings.get(value, f"undefined ({value})")


@dataclass(frozen=True)
class Family:
    """Products of one layout.

    `accept`: policy -> field -> values that are accepted, fields in order of importance; `fills`: what particular fill values say.
    """

    name: str
    title: str
    kind: Kind
    pattern: str
    composite_days: int
    layers: Mapping[str, Layer]
    fields: Mapping[str, Field]
    accept: Mapping[str, Mapping[str, tuple[int, ...]]]
    fills: Mapping[int, str]

    def layers_of(self, product: str) -> dict[str, Layer]:
        """The layers that one product of the family has."""
        return {name: layer for name, layer in self.layers.items() if re.fullmatch(layer.products, product)}


def _family(name: str, table: dict[str, Any]) -> Family:
    layers = {
        key: Layer(
            name=key,
            data_set=entry["data_set"],
            variable=entry["variable"],
            quality=entry.get("quality", ""),
            fill=tuple(entry["fill"]),
            valid=tuple(entry["valid"]),
            scale=entry.get("scale"),
            products=entry.get("products", ".*"),
        )
        for key, entry in table["layers"].items()
    }
    fields = {
        key: Field(key, entry["shift"], entry["bits"], {int(v): text for v, text in entry["meanings"].items()})
        for key, entry in table["bit_fields"].items()
    }
    accept = {
        policy: {field: tuple(values) for field, values in rule.items()} for policy, rule in table["accept"].items()
    }
    return Family(
        name=name,
        title=table["title"],
        kind=table["file"],
        pattern=table["names"],
        composite_days=table["composite_days"],
        layers=layers,
        fields=fields,
        accept=accept | {"none": {}},
        fills={int(value): text for value, text in table.get("fill_meanings", {}).items()},
    )


def _tables() -> dict[str, Any]:
    folder = files("smscale.sources")
    return {
        name: table
        for file in ("modis_tables.json", "viirs_tables.json")
        for name, table in json.loads((folder / file).read_text()).items()
    }


FAMILIES: dict[str, Family] = {name: _family(name, table) for name, table in _tables().items()}


def family_of(product: str) -> Family | None:
    """The family of a product as "MYD11A1" (or of a family's own name); None if it is not read here."""
    return next((f for f in FAMILIES.values() if product == f.name or re.fullmatch(f.pattern, product)), None)


def sensor_attrs(product: str) -> dict[str, str]:
    """Attributes that say what observed: sensor "MODIS Aqua", platform "Aqua"."""
    instrument, platform = _SENSORS[product[:3]]
    return {"sensor": f"{instrument} {platform}", "platform": platform}


def check_policy(qc: str) -> None:
    """InputError if there is no such policy."""
    if qc not in get_args(Policy):
        raise InputError(f"qc must be one of {', '.join(get_args(Policy))}, got {qc!r}")


# -- layers --------------------------------------------------------------------------------------


def code(layer: Layer, family: Family, raw: NDArray, quality: NDArray | None, qc: str) -> Coded:
    """A stored layer with its tables.

    Parameters
    ----------
    raw : (m, n) integers of one or two bytes, as stored
    quality : (m, n) quality words; None where the policy asks for none
    """
    words = None if quality is None else unsigned(quality)
    allowed = None if words is None else accepted(family.name, qc, words.dtype.itemsize)
    return Coded(unsigned(raw), values(family.name, layer.name, raw.dtype.str, qc != "none"), words, allowed)


def unsigned(raw: NDArray) -> NDArray:
    """The same bytes as unsigned integers, in this machine's byte order."""
    wanted = np.dtype(f"u{raw.dtype.itemsize}")
    return raw if raw.dtype == wanted else raw.astype(raw.dtype.newbyteorder("="), copy=False).view(wanted)


@lru_cache(maxsize=64)
def states(family: str, layer: str, dtype: str) -> NDArray[np.uint8]:
    """(256,) or (65536,): whether each raw value, seen as unsigned, is GOOD, a FILL or invalid, or BEYOND physical limits."""
    spec = FAMILIES[family].layers[layer]
    raw = _every(dtype)
    low, high = spec.valid
    state = np.where((raw < low) | (raw > high) | np.isin(raw, spec.fill), FILL, GOOD).astype(np.uint8)
    if spec.scale is not None:
        limits = VARIABLES[spec.variable]
        scaled = raw * spec.scale
        beyond = (scaled < limits.valid_min - _SLACK) | (scaled > limits.valid_max + _SLACK)
        state[beyond & (state == GOOD)] = BEYOND
    return _frozen(state)


@lru_cache(maxsize=64)
def values(family: str, layer: str, dtype: str, limited: bool) -> NDArray:
    """(256,) or (65536,): what each raw value, seen as unsigned, means; with physical limits where `limited`."""
    spec = FAMILIES[family].layers[layer]
    raw = _every(dtype)
    state = states(family, layer, dtype)
    missing = state != GOOD if limited else state == FILL
    if spec.scale is None:
        classes = np.where(raw == 0, WATER, raw)
        return _frozen(np.where(missing, LAND_COVER_FILL, classes).astype(np.uint8))
    table = (raw * spec.scale).astype(np.float32)
    table[missing] = np.nan
    return _frozen(table)


def _every(dtype: str) -> NDArray[np.int64]:
    """Every value of a type of one or two bytes, in the order of its bits seen as unsigned."""
    kind = np.dtype(dtype).newbyteorder("=")
    return np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind).astype(np.int64)


def _frozen(table: NDArray) -> NDArray:
    """Tables are shared by all who ask: nobody writes to them."""
    table.flags.writeable = False
    return table


# -- quality -------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def reasons(family: str, qc: str, width: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Why a policy rejects each quality word of `width` bytes.

    Returns
    -------
    which : (256,) or (65536,) uint8, index into the names; 0 where the word is accepted
    names : "accepted", then "field: meaning" of the first field of the policy's rule that fails
    """
    spec = FAMILIES[family]
    words = np.arange(1 << (8 * width))
    which = np.zeros(words.size, np.uint8)
    names = ["accepted"]
    for name, allowed in spec.accept[qc].items():
        field = spec.fields[name]
        found = field.of(words)
        for value in range(1 << field.bits):
            if value not in allowed:
                reason = f"{name}: {field.meanings.get(value, 'undefined')}"
                if reason not in names:
                    names.append(reason)
                which[(found == value) & (which == 0)] = names.index(reason)
    return _frozen(which), tuple(names)


@lru_cache(maxsize=32)
def accepted(family: str, qc: str, width: int) -> NDArray[np.bool_]:
    """(256,) or (65536,): whether a policy accepts each quality word of `width` bytes."""
    return _frozen(reasons(family, qc, width)[0] == 0)


def quality_meaning(product: str, word: int) -> dict[str, str]:
    """What one quality word of a product (or family, as "MxD11A1") says: field -> meaning."""
    family = _known(product)
    return {name: field.meaning(int(field.of(np.array(word)))) for name, field in family.fields.items()}


def rejected_by(product: str, histogram: ArrayLike, qc: Policy = "strict") -> dict[str, int]:
    """How many pixels a policy accepts, and why it rejects the others; the counts add up to the histogram's.

    Parameters
    ----------
    product : as "MYD11A1", or a family as "MxD11A1"
    histogram : (n,) counts of the quality words 0, 1, ..., n - 1, as np.bincount gives them
    qc : the policy

    Returns
    -------
    "accepted", and "field: meaning" of the first bit field of the policy's rule that fails, without those that no pixel has
    """
    check_policy(qc)
    counts = np.asarray(histogram)
    if counts.ndim != 1 or counts.size > 1 << 16:
        raise InputError(f"a histogram of quality words has one dimension and at most 65536 bins; got {counts.shape}")
    which, names = reasons(_known(product).name, qc, 1 if counts.size <= 256 else 2)
    found = np.bincount(which[: counts.size], weights=counts, minlength=len(names)).astype(np.int64)
    return {name: int(n) for name, n in zip(names, found, strict=True) if n or name == "accepted"}


def counts_of(layer: Layer, family: Family, raw: NDArray, quality: NDArray | None, qc: str) -> dict[str, int]:
    """What became of the pixels of a layer: "pixels" is the sum of all the others.

    Returns
    -------
    pixels; "fill: meaning" of fills that have one, fill (the others, and what is outside the product's valid range); of the rest
    one count per reason of `rejected_by`; of those accepted "outside limits" (only under a policy) and kept
    """
    state = states(family.name, layer.name, raw.dtype.str)[unsigned(raw)]
    valid = state != FILL
    out = {"pixels": int(raw.size), "fill": int(raw.size - np.count_nonzero(valid))}
    for value, text in family.fills.items():
        if found := int(np.count_nonzero(raw == value)):
            out[f"fill: {text}"] = found
            out["fill"] -= found
    kept = valid
    if quality is not None:
        words = unsigned(quality)
        histogram = np.bincount(words[valid], minlength=1 << (8 * words.dtype.itemsize))
        why = rejected_by(family.name, histogram, qc)  # type: ignore[arg-type]
        out |= {name: n for name, n in why.items() if name != "accepted"}
        kept = valid & accepted(family.name, qc, words.dtype.itemsize)[words]
    if qc != "none":
        out["outside limits"] = int(np.count_nonzero(kept & (state == BEYOND)))
    out["kept"] = int(np.count_nonzero(kept)) - out.get("outside limits", 0)
    return out


def _known(product: str) -> Family:
    family = family_of(product)
    if family is None:
        raise InputError(f"no quality table for {product!r}; supported are {SUPPORTED}")
    return family
