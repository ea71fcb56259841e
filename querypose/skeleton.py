"""The keypoints of a dataset: names, mirror pairs, OKS sigmas, edges, and divisions into parts.

All code that depends on the number or the meaning of keypoints reads it from one `Skeleton`; no other module has the
number of a keypoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from querypose.d2 import MetadataCatalog
from querypose.errors import UserError
from querypose.paths import short

Part = tuple[int, ...]

SIGMA_BOUNDS = (1e-3, 1.0)
"""Of COCO's, 0.025 to 0.107 are in use; beyond these bounds every pose, or none, is right."""


class SkeletonError(UserError, ValueError):
    """A skeleton that contradicts itself, or is unknown: names it, the keypoint and the remedy."""


@dataclass(frozen=True)
class Skeleton:
    """The K keypoints of one kind of body.

    Attributes:
        name: what a config calls it.
        keypoints: the K names, in annotation order.
        flip_pairs: index pairs (left, right) that a horizontal flip exchanges; the others keep their place.
        sigmas: the K falloffs of the object keypoint similarity, as COCO states them.
        edges: index pairs that a drawing connects.
        part_schemes: divisions of the keypoints into parts, by name (Figure 4 of QueryPose); each part lists indices.
        default_part_scheme: the one for configs that name none.
        upper_body: indices of the keypoints above the hips; if empty, `RandomHalfBody` does nothing.
        head_segment: indices of the two ends of the head; their distance is its size.

    Raises:
        SkeletonError: on construction, when an index is out of range, a sigma is not positive, a keypoint is in two
            flip pairs, or a part scheme leaves a keypoint out or has it twice.
    """

    name: str
    keypoints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    edges: tuple[tuple[int, int], ...] = ()
    part_schemes: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    default_part_scheme: str = "joint"
    upper_body: tuple[int, ...] = ()
    head_segment: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        low, high = SIGMA_BOUNDS
        if not self.keypoints or len(set(self.keypoints)) != len(self.keypoints):
            raise self._error(f"keypoints are {list(self.keypoints)}; allowed: one or more different names")
        if len(self.sigmas) != len(self.keypoints) or not all(low <= sigma <= high for sigma in self.sigmas):
            raise self._error(
                f"sigmas must be {len(self.keypoints)} numbers in [{low}, {high}], not {list(self.sigmas)}"
            )
        if not all(0 <= index < len(self.keypoints) for index in self.upper_body):
            raise self._error(f"upper_body {self.upper_body} must be indices below {len(self.keypoints)}")
        head_segments = () if self.head_segment is None else (self.head_segment,)
        for kind, groups in (
            ("flip pair", self.flip_pairs), ("edge", self.edges), ("head_segment", head_segments),
        ):  # fmt: skip
            for group in groups:
                if len(group) != 2 or not all(0 <= index < len(self.keypoints) for index in group):
                    raise self._error(f"{kind} {tuple(group)} must be two indices below {len(self.keypoints)}")
        flipped = [index for pair in self.flip_pairs for index in pair]
        for index in set(flipped):
            if flipped.count(index) > 1:
                raise self._error(f"keypoint {self.keypoints[index]!r} is in more than one flip pair")
        for scheme, parts in self.part_schemes.items():
            self._check_part_scheme(scheme, parts)
        self.parts(self.default_part_scheme)

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoints)

    @property
    def flip_indices(self) -> tuple[int, ...]:
        """Permutation of the K keypoints that a horizontal flip applies: new[k] = old[flip_indices[k]]."""
        indices = list(range(self.num_keypoints))
        for left, right in self.flip_pairs:
            indices[left], indices[right] = right, left
        return tuple(indices)

    def parts(self, scheme: str = "") -> tuple[Part, ...]:
        """The parts of a scheme, each a tuple of keypoint indices; '' is the default, 'joint' one part a keypoint.

        Raises:
            SkeletonError: the skeleton has no scheme of that name.
        """
        scheme = scheme or self.default_part_scheme
        if scheme in self.part_schemes:
            return self.part_schemes[scheme]
        if scheme == "joint":
            return tuple((index,) for index in range(self.num_keypoints))
        known = ", ".join(sorted({*self.part_schemes, "joint"}))
        raise self._error(f"there is no part scheme {scheme!r}; known: {known}")

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Skeleton:
        """Builds a skeleton from a YAML entry of DATASETS.SKELETONS.

        Args:
            entry: `name`, `keypoints`, `sigmas`, and optionally `flip_pairs`, `edges`, `part_schemes`,
                `default_part_scheme`, `upper_body`, `head_segment`. Keypoints are referred to by name.

        Raises:
            SkeletonError: a field is missing or unknown, or a name is not among the keypoints.
        """
        if not isinstance(entry, Mapping):
            raise SkeletonError(f"DATASETS.SKELETONS has the entry {short(entry)}; allowed: mappings.")
        where = f"Skeleton {short(entry.get('name', '?'))} of DATASETS.SKELETONS"
        if missing := _REQUIRED_FIELDS - entry.keys():
            raise SkeletonError(f"{where}: the fields {sorted(missing)} are missing; add them.")
        if unknown := sorted(map(str, entry.keys() - _FIELDS.keys())):
            raise SkeletonError(f"{where}: unknown fields {unknown}; allowed: {sorted(_FIELDS)}.")
        for name, value in entry.items():
            description, is_allowed = _FIELDS[name]
            if not is_allowed(value):
                raise SkeletonError(f"{where}: {name} is {short(value)}; allowed: {description}.")
        keypoints = tuple(entry["keypoints"])

        def indices(names: Iterable[str]) -> tuple[int, ...]:
            for keypoint in names:
                if keypoint not in keypoints:
                    raise SkeletonError(f"{where}: {keypoint!r} is not one of its keypoints {keypoints}.")
            return tuple(keypoints.index(keypoint) for keypoint in names)

        def pairs(groups: Iterable[Sequence[str]]) -> tuple[tuple[int, int], ...]:
            return tuple(indices(group) for group in groups)  # type: ignore[misc]  # their lengths are checked

        schemes = {
            scheme: tuple(indices(part) for part in parts) for scheme, parts in entry.get("part_schemes", {}).items()
        }
        return cls(
            name=entry["name"],
            keypoints=keypoints,
            flip_pairs=pairs(entry.get("flip_pairs", ())),
            sigmas=tuple(float(sigma) for sigma in entry["sigmas"]),
            edges=pairs(entry.get("edges", ())),
            part_schemes=schemes,
            default_part_scheme=entry.get("default_part_scheme", next(iter(schemes), "joint")),
            upper_body=indices(entry.get("upper_body", ())),
            head_segment=indices(entry["head_segment"]) if "head_segment" in entry else None,  # type: ignore[arg-type]
        )

    def _check_part_scheme(self, scheme: str, parts: Sequence[Part]) -> None:
        members = [index for part in parts for index in part]
        for index in members:
            if not 0 <= index < self.num_keypoints:
                raise self._error(f"part scheme {scheme!r} has index {index} of {self.num_keypoints} keypoints")
        for index, keypoint in enumerate(self.keypoints):
            if members.count(index) != 1:
                times = "does not have" if index not in members else "has more than once"
                raise self._error(f"part scheme {scheme!r} {times} keypoint {keypoint!r}; each must be in one part")
        if any(not part for part in parts):
            raise self._error(f"part scheme {scheme!r} has an empty part")

    def _error(self, what: str) -> SkeletonError:
        return SkeletonError(f"Skeleton {self.name!r}: {what}.")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_of(is_allowed: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list | tuple) and (length is None or len(value) == length) and all(map(is_allowed, value))
    )


def _is_part_schemes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_name(name) and _list_of(_list_of(_is_name))(parts) for name, parts in value.items()
    )


# Of an entry of DATASETS.SKELETONS: what is allowed, and whether a value is that. YAML reads on, off, yes, no as true
# or false, and numbers as numbers.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("text", _is_name),
    "keypoints": ("a list of names, each text (in quotes where YAML would read something else)", _list_of(_is_name)),
    "sigmas": ("a list of numbers", _list_of(_is_number)),
    "flip_pairs": ("a list of pairs of keypoints, [[left, right], …]", _list_of(_list_of(_is_name, 2))),
    "edges": ("a list of pairs of keypoints, [[first, second], …]", _list_of(_list_of(_is_name, 2))),
    "part_schemes": (
        "names with lists of parts, each part a list of keypoints, as in {hands: [[left_hand, right_hand], [head]]}",
        _is_part_schemes,
    ),
    "default_part_scheme": ("the name of a part scheme", _is_name),
    "upper_body": ("a list of keypoints", _list_of(_is_name)),
    "head_segment": ("two keypoints", _list_of(_is_name, 2)),
}
_REQUIRED_FIELDS = {"name", "keypoints", "sigmas"}


def skeleton_of_datasets(names: Sequence[str]) -> Skeleton:
    """The one skeleton that all the named registered datasets share.

    Raises:
        SkeletonError: no dataset is named, one is not registered, or two have different skeletons.
    """
    if not names:
        raise SkeletonError(
            "DATASETS.TRAIN and DATASETS.TEST are empty; name a dataset in one of them: the model takes its skeleton."
        )
    skeletons = []
    for name in names:
        skeleton = getattr(MetadataCatalog.get(name), "skeleton", None) if name in MetadataCatalog.list() else None
        if not isinstance(skeleton, Skeleton):
            known = sorted(known for known in MetadataCatalog.list() if hasattr(MetadataCatalog.get(known), "skeleton"))
            raise SkeletonError(
                f"There is no pose dataset {name!r}; known: {', '.join(known)}. Add your own to DATASETS.CUSTOM."
            )
        skeletons.append(skeleton)
    for name, skeleton in zip(names, skeletons, strict=True):
        if skeleton != skeletons[0]:
            raise SkeletonError(
                f"Datasets {names[0]!r} and {name!r} have different skeletons "
                f"({skeletons[0].name!r} and {skeleton.name!r}), but a model has one. Use datasets of one skeleton."
            )
    return skeletons[0]


# fmt: off
# Sigmas, edges and mirror pairs of COCO are those of the COCO keypoint task. The part schemes are Figure 4 (a) to (d)
# of QueryPose: `joint`, `head+joints`, `rigid` (its choice, Table 2d) and `limb`.
COCO_SKELETON = Skeleton(
    name="coco",
    keypoints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
        0.089,
    ),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    part_schemes={
        "joint": tuple((index,) for index in range(17)),
        "head+joints": ((0, 1, 2, 3, 4), *((index,) for index in range(5, 17))),
        "rigid": ((0, 1, 2, 3, 4), (5, 6), (7, 9), (8, 10), (11, 12), (13, 15), (14, 16)),
        "limb": ((0, 1, 2, 3, 4), (5, 7, 9), (6, 8, 10), (11, 13, 15), (12, 14, 16)),
    },
    default_part_scheme="rigid",
    upper_body=tuple(range(11)),
)

# CrowdPose has no part scheme in the paper; these are the counterparts, with head and neck for the face.
CROWDPOSE_SKELETON = Skeleton(
    name="crowdpose",
    keypoints=(
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck",
    ),
    flip_pairs=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    sigmas=(0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079),
    edges=(
        (12, 13), (13, 0), (13, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (1, 7), (6, 7), (6, 8), (8, 10), (7, 9),
        (9, 11),
    ),
    part_schemes={
        "joint": tuple((index,) for index in range(14)),
        "head+joints": ((12, 13), *((index,) for index in range(12))),
        "rigid": ((12, 13), (0, 1), (2, 4), (3, 5), (6, 7), (8, 10), (9, 11)),
        "limb": ((12, 13), (0, 2, 4), (1, 3, 5), (6, 8, 10), (7, 9, 11)),
    },
    default_part_scheme="rigid",
    upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
    head_segment=(12, 13),
)

# MPII's metric uses the size of the head and has no sigmas. These are COCO's, and CrowdPose's for head and neck; the
# pelvis has the hip's, the thorax the shoulder's. It has no part schemes: each keypoint is a part.
MPII_SKELETON = Skeleton(
    name="mpii",
    keypoints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
        "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
        "left_wrist",
    ),
    flip_pairs=((5, 0), (4, 1), (3, 2), (13, 12), (14, 11), (15, 10)),
    sigmas=(
        0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.107, 0.079, 0.079, 0.079, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062,
    ),
    edges=(
        (0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (7, 12), (12, 11), (11, 10), (7, 13),
        (13, 14), (14, 15),
    ),
    upper_body=tuple(range(7, 16)),
    head_segment=(9, 8),
)

# fmt: on
BUILTIN_SKELETONS: Mapping[str, Skeleton] = {
    skeleton.name: skeleton for skeleton in (COCO_SKELETON, CROWDPOSE_SKELETON, MPII_SKELETON)
}
