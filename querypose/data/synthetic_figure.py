"""One drawn person: a random pose of a jointed body in three dimensions, and its painting part by part.

Body frame: x to the person's left, y up, z to its front; unit: the person's height. View frame: x right, y down, z
towards the viewer, in pixels. Left and right follow from what stays true in a mirror: a face, a neckline and buttons
are in front, a rucksack is on the back, and limbs nearer to the viewer are lighter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from querypose.skeleton import COCO_SKELETON

Color = tuple[int, int, int]

# Proportions, in heights. The head is larger than life, so that eyes and nose can be seen in a small picture.
_SHANK, _THIGH, _TORSO, _NECK = 0.225, 0.225, 0.285, 0.065
_UPPER_ARM, _FOREARM, _FOOT = 0.165, 0.15, 0.075
_SHOULDER_HALF, _HIP_HALF, _HEAD = 0.105, 0.065, 0.088

PARTS = (
    "torso", "head", "left_upper_arm", "right_upper_arm", "left_forearm", "right_forearm", "left_thigh", "right_thigh",
    "left_shank", "right_shank",
)  # fmt: skip
# The parts that show a keypoint when they are on top there.
_SHOWN_BY = {
    "shoulder": ("upper_arm",), "elbow": ("upper_arm", "forearm"), "wrist": ("forearm",), "hip": ("thigh",),
    "knee": ("thigh", "shank"), "ankle": ("shank",),
}  # fmt: skip
# Lightness of a limb in the plane of the torso, its change with the depth in heights, and the limits.
_MIDDLE_LIGHT, _LIGHT_OF_DEPTH, _LIGHT_RANGE = 0.96, 3.0, (0.7, 1.22)
# A keypoint deeper than this below the surface that faces the viewer is hidden, in heights.
_FAR_SIDE = -0.05


class Painter:
    """A picture in the making: its colors, drawn at double size, and which part of which person owns each pixel."""

    def __init__(self, background: Image.Image, *, colors: bool = True) -> None:
        """Starts from a background of the final size; without `colors` only the owners are drawn, which is faster."""
        size = background.size
        self._owners = Image.new("L", size, 0)
        self._draw_owners = ImageDraw.Draw(self._owners)
        self._colors = background.resize((2 * size[0], 2 * size[1]), Image.Resampling.BILINEAR) if colors else None
        self._draw_colors = ImageDraw.Draw(self._colors) if self._colors is not None else None

    def polygon(self, points: np.ndarray, color: Color, owner: int | None = None) -> None:
        """Fills a polygon; points (N, 2) are continuous pixels. Without an owner the pixels keep theirs."""
        if len(points) < 3:
            return
        # Pillow's coordinates are 0 at the center of the first pixel.
        if self._draw_colors is not None:
            self._draw_colors.polygon((points * 2 - 0.5).ravel().tolist(), fill=color)
        if owner is not None:
            self._draw_owners.polygon((points - 0.5).ravel().tolist(), fill=owner)

    def hull(self, discs: np.ndarray, color: Color, owner: int | None = None, shaded: bool = True) -> None:
        """Fills the convex hull of discs (N, 3): x, y, radius; shaded: with a dark rim and a lighter core."""
        if owner is None and self._draw_colors is None:
            return
        shaded = shaded and self._draw_colors is not None
        self.polygon(_hull_of_discs(discs), _tone(color, 0.55) if shaded else color, owner)
        if shaded:
            radii = discs[:, 2]
            self.polygon(_hull_of_discs(_with_radii(discs, radii - np.minimum(0.9, radii * 0.25))), color)
            core = _with_radii(discs, radii * 0.45)
            core[:, 1] -= radii * 0.28  # light from above: a mirror leaves it true
            self.polygon(_hull_of_discs(core), _tone(color, 1.12))

    def owners(self) -> np.ndarray:
        """The owner of every pixel, uint8 (H, W); 0 where nobody painted."""
        return np.asarray(self._owners)

    def picture(self) -> Image.Image:
        """The picture at its final size."""
        if self._colors is None:
            raise ValueError("This painter draws owners alone.")
        return self._colors.reduce(2)


@dataclass(frozen=True, eq=False)
class Figure:
    """A posed person.

    Attributes:
        joints: COCO-17 name -> view frame (x, y, z), pixels.
        looks: colors and other features of the painting.
        height: pixels a body height.
        head: rows left, up, front of the head in the view frame (unit vectors).
        toes: side -> tip of the foot in the view frame.
        neck: its upper end, where the head sits: the center of the head, view frame.
    """

    joints: dict[str, np.ndarray]
    looks: dict[str, Any]
    height: float
    head: np.ndarray
    toes: dict[str, np.ndarray]
    neck: np.ndarray

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the keypoints."""
        points = np.array(list(self.joints.values()))[:, :2]
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        return x0, y0, x1, y1

    def shifted(self, x: float, y: float) -> Figure:
        """The same person elsewhere."""
        by = np.array([x, y, 0.0])
        joints = {name: joint + by for name, joint in self.joints.items()}
        toes = {side: toe + by for side, toe in self.toes.items()}
        return Figure(joints, self.looks, self.height, self.head, toes, self.neck + by)

    def paint(self, painter: Painter, first_owner: int) -> None:
        """Paints the parts, far ones first; part i of `PARTS` owns its pixels as `first_owner` + i."""
        jobs = [(self._depth(part), part) for part in PARTS]
        for _, part in sorted(jobs):
            owner = first_owner + PARTS.index(part)
            if part == "torso":
                self._paint_torso(painter, owner)
            elif part == "head":
                self._paint_head(painter, owner)
            else:
                self._paint_limb(painter, part, owner)

    def is_shown(self, keypoint: str, part: str | None) -> bool:
        """Whether a keypoint is visible where this part of this person (None: anything else) is on top."""
        if part is None:
            return False
        side, _, joint = keypoint.rpartition("_")
        if joint not in _SHOWN_BY:  # of the face
            outward = self.joints[keypoint] - self.neck
            return part == "head" and outward[2] > -0.2 * np.linalg.norm(outward)
        if part in [f"{side}_{own}" for own in _SHOWN_BY[joint]]:
            return True
        return part == "torso" and joint in ("shoulder", "hip") and self._relative_depth(keypoint) > _FAR_SIDE

    def _relative_depth(self, keypoint: str) -> float:
        middle = (
            sum(self.joints[f"{side}_{joint}"][2] for side in ("left", "right") for joint in ("shoulder", "hip")) / 4
        )
        return float(self.joints[keypoint][2] - middle) / self.height

    def _ends(self, part: str) -> tuple[str, str]:
        side, _, limb = part.partition("_")
        upper, lower = {
            "upper_arm": ("shoulder", "elbow"), "forearm": ("elbow", "wrist"), "thigh": ("hip", "knee"),
            "shank": ("knee", "ankle"),
        }[limb]  # fmt: skip
        return f"{side}_{upper}", f"{side}_{lower}"

    def _depth(self, part: str) -> float:
        if part == "torso":
            return float(np.mean([self.joints[name][2] for name in self.joints if name.endswith(("shoulder", "hip"))]))
        if part == "head":
            return float(self.neck[2]) + 0.02 * self.height
        upper, lower = self._ends(part)
        # A limb in the plane of the torso lies on it.
        return float(self.joints[upper][2] * 0.4 + self.joints[lower][2] * 0.6) + 0.03 * self.height

    def _paint_torso(self, painter: Painter, owner: int) -> None:
        h, looks = self.height, self.looks
        shoulders = [self.joints["left_shoulder"], self.joints["right_shoulder"]]
        hips = [self.joints["left_hip"], self.joints["right_hip"]]
        base = (shoulders[0] + shoulders[1]) / 2
        painter.hull(_discs([base, self.neck], [0.032 * h, 0.032 * h]), _tone(looks["skin"], 0.85), owner)
        # Trousers reach above the hips; the shirt lies over them.
        painter.hull(_discs(hips, [0.062 * h] * 2), looks["trousers"], owner)
        waist = [hip * 0.86 + shoulder * 0.14 for hip, shoulder in zip(hips, shoulders, strict=True)]
        painter.hull(_discs([*shoulders, *waist], [0.04 * h] * 2 + [0.05 * h] * 2), looks["shirt"], owner)
        for fraction in looks["stripes"]:
            across = [s * (1 - fraction) + w * fraction for s, w in zip(shoulders, waist, strict=True)]
            painter.hull(_discs(across, [0.012 * h] * 2), looks["trim"], shaded=False)
        # The view frame is left-handed (y down), hence the sign.
        front = -np.cross(shoulders[0] - shoulders[1], base - (hips[0] + hips[1]) / 2)[2]
        if front > 0:  # a neckline, and buttons: the person's front
            middle = (waist[0] + waist[1]) / 2
            neckline = [base + (base - middle) * 0.13, base + (middle - base) * 0.02]
            painter.hull(_discs(neckline, [0.034 * h, 0.022 * h]), _tone(looks["skin"], 0.92), shaded=False)
            for fraction in (0.3, 0.5, 0.7):
                painter.hull(_discs([base + (middle - base) * fraction], [0.011 * h]), looks["trim"], shaded=False)
        else:
            corners = [s + (w - s) * at for at in (0.2, 0.75) for s, w in zip(shoulders, waist, strict=True)]
            center = sum(corners) / 4
            corners = [center + 0.6 * (corner - center) for corner in corners]
            painter.hull(_discs(corners, [0.03 * h] * 4), looks["rucksack"])
            pocket = _discs([(corners[2] + center) / 2, (corners[3] + center) / 2], [0.018 * h] * 2)
            painter.hull(pocket, _tone(looks["rucksack"], 0.6), shaded=False)

    def _paint_limb(self, painter: Painter, part: str, owner: int) -> None:
        h, looks = self.height, self.looks
        side, _, limb = part.partition("_")
        upper, lower = (self.joints[name] for name in self._ends(part))
        depth = sum(self._relative_depth(name) for name in self._ends(part)) / 2
        light = float(np.clip(_MIDDLE_LIGHT + _LIGHT_OF_DEPTH * depth, *_LIGHT_RANGE))
        thick, thin = {
            "upper_arm": (0.043, 0.037), "forearm": (0.036, 0.029), "thigh": (0.063, 0.05), "shank": (0.048, 0.034),
        }[limb]  # fmt: skip
        is_arm = limb in ("upper_arm", "forearm")
        cloth = _tone(looks["shirt"] if is_arm else looks["trousers"], light)
        skin = _tone(looks["skin"], 0.5 + 0.5 * light)
        cover = looks["sleeves"] if is_arm else looks["legs"]  # 0 bare, 1 the upper part covered, 2 all
        bare = cover == 0 if limb in ("upper_arm", "thigh") else cover < 2
        if limb == "forearm":
            tip = lower + (lower - upper) * 0.25
            painter.hull(_discs([lower, tip], [0.025 * h, 0.022 * h]), skin, owner)
        if limb == "shank":
            painter.hull(_discs([lower, self.toes[side]], [0.033 * h, 0.022 * h]), _tone(looks["shoes"], light), owner)
        painter.hull(_discs([upper, lower], [thick * h, thin * h]), skin if bare else cloth, owner)
        if limb == "upper_arm" and bare:  # a short sleeve
            painter.hull(_discs([upper, upper * 0.6 + lower * 0.4], [0.048 * h, 0.045 * h]), cloth, owner)
        if limb == "thigh" and bare:  # shorts
            painter.hull(_discs([upper, upper * 0.5 + lower * 0.5], [0.066 * h, 0.062 * h]), cloth, owner)

    def _paint_head(self, painter: Painter, owner: int) -> None:
        looks, radius, center = self.looks, _HEAD * self.height, self.neck
        left, up, front = self.head
        painter.hull(_discs([center + up * radius * 0.12, center - up * radius * 0.15], [radius * 1.02, radius * 0.95]),
                     looks["hair"], owner)  # fmt: skip
        for ear in (left, -left):
            if ear[2] > -0.25:
                painter.hull(_discs([center + ear * radius], [radius * 0.2]), _tone(looks["skin"], 0.85), owner)
        # The face is the visible part of a cap of the sphere round a direction a little below the front.
        axis = _unit(front - 0.25 * up)
        sideways = np.cross(axis, up)
        basis = np.stack([axis, sideways, np.cross(sideways, axis)])
        directions = _FACE_CAP @ basis
        visible = center + directions[directions[:, 2] > 0] * radius
        if len(visible) >= 3:
            painter.polygon(_convex_hull(visible[:, :2]), looks["skin"])
        for keypoint in ("left_eye", "right_eye"):
            eye = self.joints[keypoint]
            if eye[2] - center[2] > 0.15 * radius:
                painter.hull(_discs([eye], [radius * 0.17]), (245, 245, 245), shaded=False)
                painter.hull(_discs([eye], [radius * 0.11]), (25, 20, 20), shaded=False)
        nose = self.joints["nose"]
        if nose[2] - center[2] > -0.2 * radius:  # in profile it sticks out of the head
            tip = _discs([nose, nose - front * radius * 0.2 + up * radius * 0.15], [radius * 0.13, radius * 0.06])
            painter.hull(tip, _tone(looks["skin"], 0.7), owner, shaded=False)
        if front[2] > 0.2:
            mouth = center + radius * (0.85 * front - 0.5 * up)
            painter.hull(_discs([mouth + left * radius * 0.2, mouth - left * radius * 0.2], [radius * 0.07] * 2),
                         (150, 50, 50), shaded=False)  # fmt: skip


def random_figure(height: float, generator: np.random.Generator, *, front: float, back: float, turn: float) -> Figure:
    """A person of a height in pixels, in a random pose and view; its pelvis is at (0, 0).

    Args:
        height: in pixels.
        generator: of all that is random.
        front: the probability that the person faces the viewer.
        back: that it turns its back to the viewer; otherwise it is seen from a side.
        turn: standard deviation in degrees, of the body from that view and of the head from the body.
    """
    body_joints, toes, neck, spine = _random_pose(generator)
    view = _random_view(generator, front, back, turn)
    head_view = view @ _rotation_y(generator.normal(0, turn)) @ _rotation_x(generator.normal(0, 8))
    head = np.stack([head_view[:, 0], _unit(head_view[:, 1] + view @ spine - view[:, 1]), head_view[:, 2]])
    joints = {name: view @ joint * height for name, joint in body_joints.items()}
    center = view @ neck * height
    left, up, front = head
    for name, direction in (
        ("nose", 1.02 * front - 0.12 * up), ("left_eye", 0.88 * front + 0.36 * left + 0.26 * up),
        ("right_eye", 0.88 * front - 0.36 * left + 0.26 * up), ("left_ear", left), ("right_ear", -left),
    ):  # fmt: skip
        joints[name] = center + direction * _HEAD * height
    joints = {name: joints[name] for name in COCO_SKELETON.keypoints}
    view_toes = {side: view @ toe * height for side, toe in toes.items()}
    return Figure(joints, _random_looks(generator), height, head, view_toes, center)


def _random_pose(
    generator: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Joints below the head, tips of the feet, center of the head, direction of the spine; body frame, in heights."""
    manner = generator.choice(["stand", "walk", "wave", "crouch", "jump"], p=[0.3, 0.25, 0.22, 0.08, 0.15])
    lean_front = generator.normal(35 if manner == "crouch" else 3, 8)
    lean = _rotation_x(lean_front) @ _rotation_z(generator.normal(0, 7))
    spine = lean @ np.array([0.0, 1.0, 0.0])
    shoulder_line = lean @ _rotation_y(generator.normal(0, 10)) @ np.array([1.0, 0.0, 0.0])
    base = _TORSO * spine
    joints, toes = {}, {}
    stride = generator.uniform(15, 45) * generator.choice([-1, 1])
    for side, sign in (("left", 1.0), ("right", -1.0)):
        outward, up, front = np.array([sign, 0, 0]), np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
        flexion, knee, abduction = {
            "stand": (generator.normal(3, 5), abs(generator.normal(0, 8)), generator.uniform(0, 14)),
            "walk": (sign * stride, generator.uniform(5, 55), generator.uniform(0, 8)),
            "wave": (generator.normal(3, 6), abs(generator.normal(0, 10)), generator.uniform(2, 22)),
            "crouch": (generator.uniform(50, 95), generator.uniform(70, 115), generator.uniform(5, 25)),
            "jump": (generator.uniform(-15, 50), generator.uniform(5, 75), generator.uniform(10, 40)),
        }[str(manner)]
        thigh = _unit(_swing(-up, front, flexion) + outward * np.tan(np.radians(abduction)))
        shank = _swing(thigh, -front, max(knee, 0.0))
        joints[f"{side}_hip"] = _HIP_HALF * outward
        joints[f"{side}_knee"] = joints[f"{side}_hip"] + _THIGH * thigh
        joints[f"{side}_ankle"] = joints[f"{side}_knee"] + _SHANK * shank
        toes[side] = joints[f"{side}_ankle"] + _FOOT * _unit(_swing(shank, front, 80) + 0.35 * outward)

        raised = generator.random() < {"wave": 0.75, "jump": 0.6}.get(str(manner), 0.12)
        elevation = generator.uniform(75, 165) if raised else abs(generator.normal(14, 14))
        if manner == "walk" and not raised:
            outer, fore = 0.5, -sign * np.sign(stride)  # arms swing against the legs
        else:
            outer, fore = 1.0, generator.uniform(-0.25, 0.9)
        sideways = _unit(outer * outward + fore * front)
        upper_arm = lean @ _swing(-up, sideways, elevation)
        bend = _unit(0.8 * front + generator.uniform(-0.6, 0.3) * outward + generator.uniform(0.1, 1.0) * up)
        forearm = _swing(upper_arm, lean @ bend, generator.uniform(0, 110) if generator.random() < 0.6 else 12.0)
        joints[f"{side}_shoulder"] = base + sign * _SHOULDER_HALF * shoulder_line
        joints[f"{side}_elbow"] = joints[f"{side}_shoulder"] + _UPPER_ARM * upper_arm
        joints[f"{side}_wrist"] = joints[f"{side}_elbow"] + _FOREARM * forearm
    neck = base + (_NECK + 0.85 * _HEAD) * spine
    return joints, toes, neck, spine


def _random_view(generator: np.random.Generator, front: float, back: float, turn: float) -> np.ndarray:
    """Body frame to view frame, (3, 3)."""
    side = (1 - front - back) / 2
    facing = generator.choice([0, 180, 90, -90], p=[front, back, side, side])
    yaw = generator.normal(facing, turn)
    pitch, roll = generator.normal(4, 5), generator.normal(0, 4)
    if generator.random() < 0.06:  # a tumbler
        roll += generator.uniform(-90, 90)
    return np.diag([1.0, -1.0, 1.0]) @ _rotation_z(roll) @ _rotation_x(pitch) @ _rotation_y(yaw)


def _random_looks(generator: np.random.Generator) -> dict[str, Any]:
    skins = ((241, 205, 175), (224, 172, 130), (198, 140, 95), (150, 100, 66), (100, 66, 44))
    hairs = ((35, 25, 20), (85, 55, 30), (190, 150, 80), (120, 60, 30), (160, 160, 160))
    stripes = ((), (), (0.45, 0.62, 0.79), (0.55,), (0.35, 0.5, 0.65, 0.8, 0.95))
    return {
        "skin": skins[generator.integers(len(skins))],
        "hair": hairs[generator.integers(len(hairs))],
        "shirt": random_color(generator),
        "trousers": _tone(random_color(generator), 0.75),
        "trim": random_color(generator),
        "rucksack": random_color(generator),
        "shoes": random_color(generator),
        "stripes": stripes[generator.integers(len(stripes))],
        "sleeves": int(generator.choice([0, 1, 2], p=[0.4, 0.2, 0.4])),
        "legs": int(generator.choice([0, 1, 2], p=[0.3, 0.1, 0.6])),
    }


def random_color(generator: np.random.Generator) -> Color:
    """A color that is neither very dark nor glaring."""
    values = generator.uniform(45, 225, size=3)
    gray = values.mean()
    red, green, blue = (int(gray + (value - gray) * 1.2) for value in values)
    return _tone((red, green, blue), 1.0)


def _tone(color: Color, factor: float) -> Color:
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in color)
    return red, green, blue


def _swing(direction: np.ndarray, towards: np.ndarray, degrees: float) -> np.ndarray:
    """The unit vector `direction` turned by an angle towards another; the same where the two are parallel."""
    across = towards - direction * (direction @ towards)
    length = np.linalg.norm(across)
    if length < 1e-6:
        return direction
    return direction * np.cos(np.radians(degrees)) + across / length * np.sin(np.radians(degrees))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _rotation_x(degrees: float) -> np.ndarray:
    """Leans y towards z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _rotation_y(degrees: float) -> np.ndarray:
    """Turns z towards x."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _rotation_z(degrees: float) -> np.ndarray:
    """Turns x towards y."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _discs(centers: list[np.ndarray], radii: list[float]) -> np.ndarray:
    return np.array([[center[0], center[1], radius] for center, radius in zip(centers, radii, strict=True)])


def _with_radii(discs: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return np.concatenate([discs[:, :2], radii[:, None]], axis=1)


# Points of a cap of the unit sphere round its first axis.
_FACE_CAP = np.array(
    [
        (np.cos(polar), np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn))
        for polar in np.radians([0, 25, 50, 68])
        for turn in np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ]
)
_CIRCLE = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], axis=1)


def _hull_of_discs(discs: np.ndarray) -> np.ndarray:
    points = discs[:, None, :2] + discs[:, None, 2:] * _CIRCLE
    return _convex_hull(points.reshape(-1, 2)) if len(discs) > 1 else points[0]


def _convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull in order, by walking the points from left to right and back."""
    ordered = sorted(map(tuple, points.tolist()))
    half_hulls = []
    for walk in (ordered, ordered[::-1]):
        half: list[tuple[float, float]] = []
        for x, y in walk:
            while len(half) > 1 and (
                (half[-1][0] - half[-2][0]) * (y - half[-2][1]) <= (half[-1][1] - half[-2][1]) * (x - half[-2][0])
            ):
                half.pop()
            half.append((x, y))
        half_hulls += half[:-1]
    return np.array(half_hulls)
