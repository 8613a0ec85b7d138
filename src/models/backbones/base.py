"""The contract of every backbone: RGB images in, activations of any of its layers out, and on from there."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from src.activation_spec import ActivationSpec
from src.models.backbones.hooks import Call, calls_after, n_calls_to, outputs_of, watch
from src.models.backbones.preprocessing import Intensity, Interpolation, Preprocessing, Resize
from src.models.backbones.spec import CROP_PCT, IMAGE_SIZE, INTENSITY, INTERPOLATION, MEAN, OUTPUT, POOLED, RESIZE, STD
from src.models.backbones.tokens import TOKENS, find_grid, from_tokens, n_picked, pick, to_tokens

Tokens = Literal["cls", "patch", "all", "mean", "cls_mean", "pooled", "projected"]
_OF_OUTPUT = ("pooled", "projected")


class Backbone(nn.Module, ABC):
    """A frozen vision model and the preprocessing that belongs to it.

    A family says how its models run (`_body`, `_head`, `_project`) and what their layers are called; the rest is here,
    by forward hooks.

    Attributes:
        name: enters the names of feature folders.
        description: what the weights are, and what is taken, for the report.
        model: the model itself.
        layers: module names of its blocks or stages, from input to output. A layer's canonical name is its index here
            (`0`, `1`, ...), or `output`: after the last norm or convolution, before pooling.
        chosen: canonical names of the layers that were asked for.
        tokens: what is taken of a layer: the class token `cls`, `patch` tokens, `all` tokens, the `mean` of the patch
            tokens, class token and mean side by side, `cls_mean`; of the output also what the model itself pools,
            `pooled`, and the space shared with text, `projected`. Maps of convolutional models are patch tokens, row by
            row.
        input_size: height and width in pixels.
        n_prefix: class and register tokens, which come before the patch tokens.
        projects: whether there is a projection into a space shared with text.

    Args:
        name: see above.
        model: the model; evaluated and frozen here. A module `projection_head` in it is the projection.
        layers: see above.
        model_name: the architecture, for the spec.
        weights: digest or name of the weights, for the spec.
        description: what the weights are, in words.
        layer: None for the output, an index (also from the end), a module name, or several of them.
        tokens: see above.
        n_prefix: see above.
        channels_last: whether maps are [batch, rows, columns, d].
        image_size, mean, std, interpolation, resize, crop_pct, normalize_each, intensity: of `Preprocessing`.

    Raises:
        ValueError: when there is no such layer, or it has no such tokens.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        layers: Sequence[str],
        model_name: str,
        weights: str,
        description: str,
        layer: int | str | Sequence[int | str] | None = None,
        tokens: Tokens = "pooled",
        n_prefix: int = 0,
        channels_last: bool = False,
        image_size: int | Sequence[int] = IMAGE_SIZE,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        interpolation: Interpolation = INTERPOLATION,
        resize: Resize = RESIZE,
        crop_pct: float = CROP_PCT,
        normalize_each: bool = False,
        intensity: Intensity = INTENSITY,
    ) -> None:
        super().__init__()
        self.name, self.model, self.layers = name, model, tuple(layers)
        self._prepare = Preprocessing(image_size, mean, std, interpolation, resize, crop_pct, normalize_each, intensity)
        self.input_size, self.projects = self._prepare.size, self._has_projection()
        self.n_prefix, self._channels_last = n_prefix, channels_last
        self._model_name, self._weights = model_name, weights
        several = layer if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
        self.chosen = tuple(dict.fromkeys(self.resolve(one) for one in several))
        self.tokens: Tokens = tokens
        for one in self.chosen:
            self._check_tokens(one, tokens)
        places = ", ".join(one if one == OUTPUT else f"layer {one}" for one in self.chosen)
        self.description = f"{description}; {tokens} of {places}"
        self.eval().requires_grad_(False)
        watch({str(index): model.get_submodule(module) for index, module in enumerate(self.layers)})
        self._shapes = self._find_shapes()
        self._tails: dict[tuple[str, torch.device], list[Call]] = {}

    @abstractmethod
    def _body(self, images: Tensor) -> Tensor:
        """Returns the output before pooling, a sequence or a map, of normalised images."""

    @abstractmethod
    def _head(self, native: Tensor) -> Tensor:
        """Returns pooled features [batch, n] of what `_body` gives."""

    def _has_projection(self) -> bool:
        return getattr(self.model, "projection_head", None) is not None

    def _project(self, pooled: Tensor) -> Tensor:
        """Returns pooled features in the space shared with text, where there is one."""
        head = getattr(self.model, "projection_head", None)
        return pooled if head is None else head(pooled)

    def resolve(self, layer: int | str | None) -> str:
        """Returns the canonical name of a layer: its index, or `output`.

        Raises:
            ValueError: when the model has no such layer; lists those it has.
        """
        if layer is None or layer == OUTPUT:
            return OUTPUT
        if layer in self.layers:
            return str(self.layers.index(layer))
        number = int(layer) if str(layer).removeprefix("-").isdecimal() else None
        if number is None or not -len(self.layers) <= number < len(self.layers):
            named = ", ".join(f"{index} {module}" for index, module in enumerate(self.layers))
            raise ValueError(
                f"Expected backbone.layer to be a layer of {self._model_name}, got {layer}. It has: {named}; null is "
                "its output."
            )
        return str(number % len(self.layers))

    def activations(
        self,
        images: Float[Tensor, "batch 3 height width"],
        layers: Sequence[int | str | None] | None = None,
        tokens: Tokens | None = None,
    ) -> dict[str, Float[Tensor, "batch _ _"]]:
        """Returns activations [batch, n_tokens, d], float32, by canonical layer: one pass, up to the last layer.

        Args:
            images: normalised, [batch, 3, height, width].
            layers: those `chosen` when None.
            tokens: those of the configuration when None.

        Raises:
            ValueError: when there is no such layer, or it has no such tokens.
        """
        what = tokens or self.tokens
        names = self.chosen if layers is None else tuple(self.resolve(layer) for layer in layers)
        points = {name: self._check_tokens(name, what) for name in names}
        native = self(images, tuple(points.values()))
        return {
            name: native[point][:, None].float()
            if point in _OF_OUTPUT
            else pick(to_tokens(native[point], self._channels_last), what, self.n_prefix).float().contiguous()
            for name, point in points.items()
        }

    def forward(self, images: Float[Tensor, "batch 3 height width"], points: Sequence[str]) -> dict[str, Tensor]:
        """Returns what the model itself gives at layers, at its `output`, when it is `pooled` and `projected`."""
        beyond = [point for point in points if point in (OUTPUT, *_OF_OUTPUT)]
        layers = sorted(set(points) - set(beyond), key=int)
        run: dict[str, Tensor] = {}
        outputs = outputs_of(layers, lambda: run.update({OUTPUT: self._body(images)}), stop=not beyond)
        if set(beyond) & set(_OF_OUTPUT):
            run["pooled"] = self._head(run[OUTPUT])
        if "projected" in beyond:
            run["projected"] = self._project(run["pooled"])
        return outputs | {point: run[point] for point in beyond}

    def tail(self, layer: int | str | None, activations: Float[Tensor, "batch n_tokens d"]) -> Float[Tensor, "batch n"]:
        """Returns the model's own result [batch, n] from the activations of a layer; runs only what follows it.

        The result is what the whole model gives: features, or logits where it has a classifier.

        The first call for a layer runs the whole model on one random image, to see which modules follow and what they
        are given beside the activations (positions, masks), and to check that they suffice.

        Args:
            layer: where the activations are from.
            activations: `all` tokens of it, [batch, n_tokens, d].

        Raises:
            ValueError: when the model does more after the layer than to call one module after another.
        """
        name = self.resolve(layer)
        x = from_tokens(activations, self._shapes[name], self._channels_last)
        for call in self._calls(name):
            x = call(x)
        return self._project(self._head(x))

    def resize(self, images: UInt8[Tensor, "*batch 3 height width"]) -> UInt8[Tensor, "*batch 3 h w"]:
        """Returns images [..., 3, H, W] at the input size, uint8; meant for the CPU, in the threads that read."""
        return self._prepare.resize(images)

    def normalize(self, images: UInt8[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        """Returns resized images as the model takes them, on its device."""
        return self._prepare.normalize(images.to(self.device))

    @property
    def transform(self) -> str:
        """The preprocessing in words."""
        return str(self._prepare)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def d_in(self, layer: int | str | None = None, tokens: Tokens | None = None) -> int:
        """Returns the width of a layer's activations, which is the SAE's input width.

        Args:
            layer: the only one chosen when None.
            tokens: those of the configuration when None.
        """
        what = tokens or self.tokens
        shape = self._shapes[self._check_tokens(self._one(layer), what)]
        width = shape[0] if len(shape) == 3 and not self._channels_last else shape[-1]
        return 2 * width if what == "cls_mean" else width

    def grid(self, layer: int | str | None = None) -> tuple[int, int]:
        """Returns rows and columns of a layer's patch tokens; of the only layer chosen when None."""
        shape = self._shapes[self._one(layer)]
        if len(shape) == 3:
            return (shape[0], shape[1]) if self._channels_last else (shape[1], shape[2])
        return find_grid(shape[0] - self.n_prefix, self.input_size)

    def n_tokens(self, layer: int | str | None = None, tokens: Tokens | None = None) -> int:
        """Returns how many rows an image has at a layer: 1 of `cls`, `mean`, `pooled` and `projected`."""
        rows, columns = self.grid(layer)
        return n_picked(rows * columns + self.n_prefix, tokens or self.tokens, self.n_prefix)

    def spec(self, layer: int | str | None = None) -> ActivationSpec:
        """Returns what a layer's activations are of, for images that are not cut into patches."""
        name = self._one(layer)
        grid = (1, 1) if self.tokens in POOLED else self.grid(name)
        return ActivationSpec(
            model=self._model_name,
            weights=self._weights,
            layer=name,
            tokens=self.tokens,
            grid=f"{grid[0]}x{grid[1]}",
            transform=self.transform,
            input_size=f"{self.input_size[0]}x{self.input_size[1]}",
            patch_size="none",
            mpp="none",
        )

    def _one(self, layer: int | str | None) -> str:
        if layer is not None:
            return self.resolve(layer)
        if len(self.chosen) != 1:
            raise ValueError(f"Expected one layer, got none of the {len(self.chosen)} chosen: {list(self.chosen)}.")
        return self.chosen[0]

    def _check_tokens(self, layer: str, tokens: str) -> str:
        """Returns the point of `forward` that has these tokens of a layer."""
        if tokens not in TOKENS:
            raise ValueError(f"Expected backbone.tokens to be one of {', '.join(TOKENS)}, got {tokens}.")
        if tokens in ("cls", "cls_mean") and not self.n_prefix:
            raise ValueError(f"Expected a model with class token for backbone.tokens={tokens}, got {self._model_name}.")
        if tokens in _OF_OUTPUT and layer != OUTPUT:
            raise ValueError(f"Expected backbone.layer=null for backbone.tokens={tokens}, got {layer}: give mean.")
        if tokens == "projected" and not self.projects:
            raise ValueError(f"Expected a model with projection for backbone.tokens=projected, got {self._model_name}.")
        return tokens if tokens in _OF_OUTPUT else layer

    def _find_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of one image's activations at each point, by a forward pass that computes nothing."""
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        nothing = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
        images = torch.empty(1, 3, *self.input_size, device="meta")
        points = [*(str(index) for index in range(len(self.layers))), OUTPUT, "pooled", "projected"]
        given = functional_call(self, nothing, (images, points))
        return {point: tuple(value.shape[1:]) for point, value in given.items()}

    def _calls(self, layer: str) -> list[Call]:
        """Returns the calls between a layer and the output, found on a random image once a layer and device."""
        if layer == OUTPUT:
            return []
        key = layer, self.device
        if key not in self._tails:
            module_name = self.layers[int(layer)]
            generator = torch.Generator().manual_seed(0)
            image = torch.randn(1, 3, *self.input_size, generator=generator).to(self.device)
            with torch.no_grad():
                native = self(image, (layer, OUTPUT))
                module = self.model.get_submodule(module_name)
                calls = calls_after(module, self.model, lambda: self._body(image))
                n_needed = n_calls_to(calls, native[layer], native[OUTPUT])
            if n_needed is None:
                raise ValueError(
                    f"Expected a model that only calls one module after another behind layer {layer} ({module_name}), "
                    f"got {self._model_name}. Give a later layer."
                )
            self._tails[key] = calls[:n_needed]
        return self._tails[key]
