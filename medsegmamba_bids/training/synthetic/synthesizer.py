"""Images synthesised from label maps, as SynthSeg does (Billot et al. 2023, Medical Image Analysis 86:102789).

A label map is warped, every tissue gets a random intensity, and the image is degraded the way scanners
and preprocessing degrade it. Only the patch that is trained on is ever made, so that a sample costs tens
of milliseconds on one core; whole-volume generators of public libraries take seconds.

Shape letters: X, Y, Z label map; P patch side; T tissues; C classes; G control points of a smooth field.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit

from medsegmamba_bids.anatomy import CORTEX, HYPOINTENSITIES, WHITE_MATTER
from medsegmamba_bids.training.synthetic.label_maps import NARROWED, VENTRICLES, LabelMap
from medsegmamba_bids.training.synthetic.tissues import TissueTable

#: A lesion that is darker than this (white matter: 1) is labelled as a hypointensity, as FreeSurfer does.
DARK_LESION = 0.85
#: How far the head moves between lines of the acquisition, voxels.
MOTION_SD = 1.0


@dataclass(frozen=True)
class SynthesisSettings:
    """Ranges of the random choices; lengths in mm, angles in degrees, intensities relative to white matter.

    With ``centre_jitter_mm`` every patch lies around the middle of the classes' box, at most so far off along
    each axis, as where a network looks at one region; without it (None) patches lie all over the head.

    ``real_image`` is the share of real images among the samples of a map that has one. Each of them gets none, half
    or all (with equal chance) of a random shift of every tissue's intensity, whose standard deviation is
    ``real_shift`` times the tissue's ``spread``, so that few scanners stand for many.

    The rest are shares of the samples. Of the synthesised ones: ``atrophy``, where ventricles have grown into white
    matter and fluid into cortex, by up to so many mm; ``narrow_ventricles``, where their walls have come closer, as
    in the young; ``lesions``, where white matter has spots of any intensity. Of all: ``motion``, where the head has
    moved between the lines of the acquisition.
    """

    patch_size: int = 80
    voxel_size: tuple[float, float] = (1.5, 1.5)
    rotation_sd: float = 9.0
    scale_sd: float = 0.07
    global_scale_sd: float = 0.05
    shear_sd: float = 0.03
    elastic_mm: tuple[float, float] = (4.0, 1.4)
    t1_like: float = 0.9
    skull_stripped: float = 0.4
    defaced: float = 0.15
    thick_slices: float = 0.2
    blurred: float = 0.5
    centre_structure: float = 0.5
    centre_box: float = 0.4
    noise_max: float = 0.06
    bias_max: float = 0.35
    real_image: float = 0.7
    real_shift: float = 0.0
    atrophy: float = 0.0
    narrow_ventricles: float = 0.0
    ventricle_growth_mm: float = 5.0
    ventricle_loss_mm: float = 2.5
    cortex_loss_mm: float = 1.2
    lesions: float = 0.0
    motion: float = 0.0
    centre_jitter_mm: float | None = None


@dataclass
class Synthesizer:
    """Endless source of (image, target) patches; a sample depends on its seed alone."""

    maps: list[LabelMap]
    tissues: TissueTable
    settings: SynthesisSettings = field(default_factory=SynthesisSettings)

    def sample(self, *seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return one training patch.

        Parameters
        ----------
        *seed : int
            Any integers, such as (run seed, step).

        Returns
        -------
        image : float32 (P, P, P), 0 to 1
        target : uint8 (P, P, P), class indices
        accepts : bool (C, C)
            ``accepts[t, c]``: class c is not wrong where the map says t (merged classes).
        """
        rng = np.random.default_rng(seed)
        weights = np.array([m.weight for m in self.maps])
        label_map = self.maps[rng.choice(len(self.maps), p=weights / weights.sum())]
        matrix, centre = self._random_pose(label_map, rng)
        flip = rng.random() < 0.5
        tissue, values, real = self._warp(label_map, matrix, centre, flip, rng)
        image = torch.from_numpy(values)
        if not real and _happens(rng, self.settings.lesions):
            image, tissue = self._lesions(image, tissue, rng)
        image = self._texture(image, tissue, rng, real)
        target = self.tissues.targets[tissue]
        image = self._acquire(image, rng)
        image = self._mask(image, tissue, matrix, centre, label_map, rng, real)
        accepts = label_map.accepts
        return self._rescale(image, rng).numpy(), target, accepts

    def _random_pose(self, m: LabelMap, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrix from patch voxels to map voxels (3, 3) and the map voxel at the patch's centre (3,)."""
        s = self.settings
        voxel = rng.uniform(*s.voxel_size)
        rotation = _rotation(np.deg2rad(rng.normal(0, s.rotation_sd, 3)))
        shear = np.eye(3) + np.triu(rng.normal(0, s.shear_sd, (3, 3)), 1)
        scale = np.exp(rng.normal(0, s.scale_sd, 3) + rng.normal(0, s.global_scale_sd))
        matrix = rotation @ shear @ np.diag(1 / scale) * voxel
        half = s.patch_size * voxel / 2
        kind = rng.random()
        if s.centre_jitter_mm is not None:
            reach = s.centre_jitter_mm  # maps have voxels of 1 mm
            centre = m.brain_box.mean(1) + rng.uniform(-reach, reach, 3)
        elif kind < s.centre_structure:
            present = np.flatnonzero(m.counts)
            centre = m.centres[rng.choice(present)] + rng.uniform(-half / 2, half / 2, 3)
        elif kind < s.centre_structure + s.centre_box:
            low, high = m.brain_box[:, 0] + half * 0.8, m.brain_box[:, 1] - half * 0.8
            middle = m.brain_box.mean(1)
            centre = rng.uniform(np.minimum(low, middle), np.maximum(high, middle))
        else:
            centre = rng.uniform(0, m.tissue.shape)
        return matrix, centre

    def _warp(
        self, m: LabelMap, matrix: np.ndarray, centre: np.ndarray, flip: bool, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Return tissue indices uint8 and image values float32, both (P, P, P), and whether the image is a real one."""
        p = self.settings.patch_size
        coarse, fine = self.settings.elastic_mm
        field_mm = rng.random() * coarse * _smooth_field(rng, 5, 25, 3)
        field_mm += rng.random() * fine * _smooth_field(rng, 12, 25, 3)
        if flip:  # the patch's first axis runs the other way
            matrix = matrix * np.array([[-1.0, 1.0, 1.0]])
        real = m.image is not None and rng.random() < self.settings.real_image
        means = (self._real_shifts(rng) if real else self._intensities(rng)).astype(np.float32)
        reach = np.zeros(len(means), np.uint8) if real else self._reach(rng)
        picture = m.image if real else np.zeros((1, 1, 1), np.float32)
        field_mm = field_mm.astype(np.float32)
        tissue, values = _warp_patch(
            m.tissue, m.neighbour, m.neighbour_distance, reach, picture, real, means, matrix, centre, field_mm, p
        )
        if flip:
            tissue = self.tissues.mirror[tissue]
        return tissue, values, real

    def _intensities(self, rng: np.random.Generator) -> np.ndarray:
        """Return mean intensity of every tissue (T,), white matter at 1."""
        rows = self.tissues.rows
        if rng.random() > self.settings.t1_like:
            means = rng.uniform(0.05, 1.2, len(rows))
        else:
            contrast = rng.uniform(0.6, 1.35)  # scanners and sequences differ in grey-white contrast
            base = 1 - (1 - rows["mean"].to_numpy()) * np.where(rows["brain"] == 1, contrast, 1)
            means = base + rng.normal(0, 1, len(rows)) * rows["spread"].to_numpy()
        means[0] = 0 if rng.random() < 0.3 else rng.uniform(0, 0.06)
        mirror = self.tissues.mirror
        sided = mirror != np.arange(len(rows))
        left = np.arange(len(rows)) < mirror
        means[mirror[sided & left]] = means[sided & left] + rng.normal(0, 0.01, (sided & left).sum())
        return np.clip(means, 0, 2.5)

    def _real_shifts(self, rng: np.random.Generator) -> np.ndarray:
        """Return what is added to a real image within every tissue of the brain (T,), the same on both sides."""
        rows, mirror = self.tissues.rows, self.tissues.mirror
        if not self.settings.real_shift:
            return np.zeros(len(rows))
        share = rng.choice((0.0, 0.5, 1.0)) * self.settings.real_shift
        shifts = share * rng.normal(0, 1, len(rows)) * rows["spread"].to_numpy()
        first_side = np.minimum(np.arange(len(rows)), mirror)
        return np.where(self.tissues.in_brain, shifts[first_side], 0)

    def _reach(self, rng: np.random.Generator) -> np.ndarray:
        """Return how far away a tissue's neighbour may be to have taken its place, tenths of mm, uint8 (T,)."""
        s, labels = self.settings, self.tissues.rows["label"]
        reach = np.zeros(len(labels), np.uint8)
        if _happens(rng, s.atrophy):
            reach[labels.isin(WHITE_MATTER)] = rng.uniform(0, 10 * s.ventricle_growth_mm)
            reach[labels.isin(CORTEX)] = rng.uniform(0, 10 * s.cortex_loss_mm)
        elif _happens(rng, s.narrow_ventricles):
            reach[labels.isin(NARROWED)] = rng.uniform(0, 10 * s.ventricle_loss_mm)
        return reach

    def _lesions(
        self, image: torch.Tensor, tissue: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Return spots in white matter, near ventricles above all; dark ones are FreeSurfer's hypointensities."""
        p = image.shape[0]
        labels = self.tissues.rows["label"].to_numpy()[tissue]
        cells = max(4, int(p * np.mean(self.settings.voxel_size) / rng.uniform(4, 12)))
        spots = _upsample(torch.from_numpy(rng.standard_normal((cells,) * 3, dtype=np.float32)), p)
        ventricle = torch.from_numpy(np.isin(labels, VENTRICLES).astype(np.float32))
        near = _mean_of_five(ventricle).sqrt()
        inside = (spots + rng.uniform(0, 3) * near - rng.uniform(0.5, 1.3)).mul(5).clamp(0, 1)
        inside = inside * torch.from_numpy(np.isin(labels, WHITE_MATTER))
        level = rng.uniform(0.35, 1.3)
        if level < DARK_LESION:
            hypointensity = self.tissues.index_of(np.array([HYPOINTENSITIES]))[0]
            tissue = np.where(inside.numpy() > 0.5, hypointensity, tissue)
        return image + inside * (level - image), tissue

    def _texture(self, image: torch.Tensor, tissue: np.ndarray, rng: np.random.Generator, real: bool) -> torch.Tensor:
        """Return grain and slow drifts within a tissue, such as the brighter lateral thalamus."""
        if real:
            return image
        p = image.shape[0]
        grain = torch.from_numpy(self.tissues.rows["grain"].to_numpy(np.float32)[tissue])
        noise = torch.from_numpy(rng.standard_normal((p, p, p), dtype=np.float32))
        cells = max(3, int(p * np.mean(self.settings.voxel_size) / 9))
        drift = _upsample(torch.from_numpy(rng.standard_normal((cells,) * 3, dtype=np.float32)), p)
        clumps = _upsample(torch.from_numpy(rng.standard_normal((p // 2,) * 3, dtype=np.float32)), p)
        fine, coarse, medium = rng.uniform(0.3, 1.0), rng.uniform(0.5, 1.8), rng.uniform(0, 1.0)
        return image + grain * (fine * noise + coarse * drift + medium * clumps)

    def _acquire(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Add blur, thick slices, bias field and noise."""
        s, p = self.settings, image.shape[0]
        if rng.random() < s.blurred:
            image = _blur(image, rng.uniform(0.2, 0.75, 3))
        if rng.random() < s.thick_slices:
            image = _thick_slices(image, int(rng.integers(3)), rng.uniform(1.3, 4.0 / min(s.voxel_size)))
        if _happens(rng, s.motion):
            image = _move_between_lines(image, int(rng.integers(3)), rng)
        bias = torch.from_numpy(rng.standard_normal((4, 4, 4), dtype=np.float32))
        image = image * torch.exp(_upsample(bias, p) * rng.uniform(0, s.bias_max))
        noise = torch.from_numpy(rng.standard_normal((p, p, p), dtype=np.float32))
        return (image + noise * rng.uniform(0, s.noise_max)).abs()

    def _mask(
        self,
        image: torch.Tensor,
        tissue: np.ndarray,
        matrix: np.ndarray,
        centre: np.ndarray,
        m: LabelMap,
        rng: np.random.Generator,
        real: bool,
    ) -> torch.Tensor:
        """Return the head skull-stripped with a ragged margin, defaced, or as it is."""
        s, p = self.settings, image.shape[0]
        if rng.random() < s.skull_stripped and not (real and m.stripped):
            brain = self.tissues.in_brain[tissue]
            near = _mean_of_five(torch.from_numpy(brain.astype(np.float32)))
            ragged = _upsample(torch.from_numpy(rng.random((8, 8, 8), dtype=np.float32)), p)
            limit = rng.uniform(0.02, 0.3) + ragged * rng.uniform(0, 0.3)
            return image * ((near > limit) & (image > 0))
        if rng.random() < s.defaced:
            normal = np.array([0, rng.uniform(0.3, 0.9), 1.0])  # maps are LIA: inferior and anterior
            normal /= np.linalg.norm(normal)
            corner = max(float(normal @ m.brain_box[:, 1]) * 0.9, float(normal @ centre))
            axes = [(np.arange(p) - (p - 1) / 2) * float(normal @ matrix[:, a]) for a in range(3)]
            depth = axes[0][:, None, None] + axes[1][:, None] + axes[2] + float(normal @ centre)
            face = (depth > corner + rng.uniform(0, 20)) & (self.tissues.targets[tissue] == 0)
            return image * torch.from_numpy(~face)
        return image

    def _rescale(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Scale white matter to where robust rescaling of whole heads or stripped brains leaves it."""
        gamma = float(np.exp(rng.normal(0, 0.15)))
        return (image.clamp_min(0) ** gamma * rng.uniform(0.25, 0.95)).clamp_max(1.0)


def _happens(rng: np.random.Generator, share: float) -> bool:
    """Return whether something that happens in so large a share of samples happens; a share of 0 draws no number."""
    return share > 0 and rng.random() < share


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation matrix (3, 3) from angles about the three axes, in radians."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles).as_matrix()


def _smooth_field(rng: np.random.Generator, points: int, size: int, channels: int) -> np.ndarray:
    """Return a smooth random field (channels, size, size, size) of unit standard deviation at its control points."""
    control = torch.from_numpy(rng.standard_normal((1, channels, points, points, points), dtype=np.float32))
    return F.interpolate(control, size=(size,) * 3, mode="trilinear", align_corners=True)[0].numpy()


def _upsample(control: torch.Tensor, size: int) -> torch.Tensor:
    """Return a trilinear field (size, size, size) through control points (G, G, G)."""
    return F.interpolate(control[None, None], size=(size,) * 3, mode="trilinear", align_corners=True)[0, 0]


def _mean_of_five(image: torch.Tensor) -> torch.Tensor:
    """Return the mean over 5 x 5 x 5 voxels, axis after axis, which is several times faster; outside lie zeros."""
    for kernel, padding in (((5, 1, 1), (2, 0, 0)), ((1, 5, 1), (0, 2, 0)), ((1, 1, 5), (0, 0, 2))):
        image = F.avg_pool3d(image[None, None], kernel, 1, padding)[0, 0]
    return image.clamp_min(0)


def _blur(image: torch.Tensor, sigmas: np.ndarray) -> torch.Tensor:
    """Return Gaussian blur with a standard deviation per axis, in voxels (at most about 1)."""
    offsets = torch.arange(-2, 3, dtype=torch.float32)
    for axis, sigma in enumerate(sigmas):
        kernel = torch.exp(-0.5 * (offsets / float(sigma)) ** 2)
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = 5
        padding = [0, 0, 0]
        padding[axis] = 2
        image = F.conv3d(image[None, None], (kernel / kernel.sum()).reshape(shape), padding=padding)[0, 0]
    return image


def _thick_slices(image: torch.Tensor, axis: int, factor: float) -> torch.Tensor:
    """Average slices ``factor`` voxels thick along an axis and interpolate them back."""
    size = list(image.shape)
    thick = list(size)
    thick[axis] = max(2, round(size[axis] / factor))
    slices = F.interpolate(image[None, None], size=thick, mode="area")
    return F.interpolate(slices, size=size, mode="trilinear")[0, 0]


def _move_between_lines(image: torch.Tensor, axis: int, rng: np.random.Generator) -> torch.Tensor:
    """Return ghosts and ringing: some lines of k-space along an axis come from a head that lay elsewhere.

    The centre of k-space, which holds the contrast, is not moved.
    """
    size = image.shape[axis]
    spectrum = torch.fft.rfft(image, dim=axis)
    frequency = torch.arange(spectrum.shape[axis]) / size
    moved = torch.zeros(len(frequency))
    for _ in range(int(rng.integers(1, 5))):
        first = int(rng.integers(max(2, size // 20), len(frequency)))
        last = first + int(rng.integers(1, max(2, len(frequency) // 4)))
        moved[first:last] = rng.normal(0, MOTION_SD)
    shape = [1, 1, 1]
    shape[axis] = len(frequency)
    ramp = torch.polar(torch.ones(len(frequency)), -2 * torch.pi * frequency * moved).reshape(shape)
    return torch.fft.irfft(spectrum * ramp, n=size, dim=axis)


@njit(cache=True, fastmath=True, nogil=True)
def _warp_patch(
    tissue: np.ndarray,
    neighbour: np.ndarray,
    neighbour_distance: np.ndarray,
    reach: np.ndarray,
    picture: np.ndarray,
    real: bool,
    means: np.ndarray,
    matrix: np.ndarray,
    centre: np.ndarray,
    field_mm: np.ndarray,
    p: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tissue at every patch voxel and the mean intensity of eight points around it (partial volume).

    ``means`` of the tissues make the intensity; they are added to that of the ``picture`` where it is ``real``.
    What lies nearer to its neighbour than its tissue's ``reach`` has turned into it.
    The patch voxel v lies at ``centre + matrix (v - (p - 1) / 2) + field(v)`` in the map.
    """
    nx, ny, nz = tissue.shape
    g = field_mm.shape[1]
    out = np.zeros((p, p, p), np.uint8)
    values = np.zeros((p, p, p), np.float32)
    step = (g - 1) / (p - 1)
    middle = (p - 1) / 2
    corners = np.empty((8, 3))
    for corner in range(8):
        for a in range(3):
            corners[corner, a] = 0.5  # for rounding
            for b in range(3):
                corners[corner, a] += matrix[a, b] * (0.25 if corner >> b & 1 else -0.25)
    line, shift = np.empty((3, g)), np.empty(3)  # the field along k at this i and j; position of this voxel
    for i in range(p):
        fi = i * step
        i0 = min(int(fi), g - 2)
        wi = fi - i0
        for j in range(p):
            fj = j * step
            j0 = min(int(fj), g - 2)
            wj = fj - j0
            for a in range(3):
                start = centre[a] + matrix[a, 0] * (i - middle) + matrix[a, 1] * (j - middle) - matrix[a, 2] * middle
                for k in range(g):
                    low = field_mm[a, i0, j0, k] * (1 - wj) + field_mm[a, i0, j0 + 1, k] * wj
                    high = field_mm[a, i0 + 1, j0, k] * (1 - wj) + field_mm[a, i0 + 1, j0 + 1, k] * wj
                    line[a, k] = start + low * (1 - wi) + high * wi
            for k in range(p):
                fk = k * step
                k0 = min(int(fk), g - 2)
                wk = fk - k0
                for a in range(3):
                    shift[a] = line[a, k0] * (1 - wk) + line[a, k0 + 1] * wk + matrix[a, 2] * k
                x, y, z = int(shift[0] + 0.5), int(shift[1] + 0.5), int(shift[2] + 0.5)
                if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
                    t = tissue[x, y, z]
                    out[i, j, k] = neighbour[x, y, z] if neighbour_distance[x, y, z] < reach[t] else t
                total = 0.0
                for corner in range(8):
                    x = int(shift[0] + corners[corner, 0])
                    y = int(shift[1] + corners[corner, 1])
                    z = int(shift[2] + corners[corner, 2])
                    if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
                        t = tissue[x, y, z]
                        if neighbour_distance[x, y, z] < reach[t]:
                            t = neighbour[x, y, z]
                        total += means[t]
                        if real:
                            total += picture[x, y, z]
                    elif not real:
                        total += means[0]
                values[i, j, k] = total / 8
    return out, values
