"""Moments of what each channel adds to the layers that read it."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_passport import graph, scores
from keras_passport.errors import PassportError
from keras_passport.layers import folding, normalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import features, inputs

# Most numbers in one array.
CHUNK = 2**24
# Places of all pictures together that moments of a convolution are taken at:
# how pictures differ is a larger error than how their places do.
PLACES = 2**15
# Most numbers that a search holds of a layer: of wide layers only some outputs
# are equations, since pairs of channels grow with their square.
PAIRS = 2**29


class Flow:
    """Which protected layers feed which, and parts of the graph to run."""

    def __init__(self, model):
        if any(graph.is_model(layer) for _, layer in graph.walk(model)):
            raise PassportError(
                "Expected a model without nested models, whose graph can be "
                f"followed. Received: '{model.name}'"
            )
        self._model = model
        self.graph = graph.Graph(model)
        self.layers = protected_layers(model)
        calls = {
            path: len(self.graph.calls[id(layer)])
            for path, layer in self.layers.items()
        }
        if often := {path: n for path, n in calls.items() if n != 1}:
            raise PassportError(
                "Expected a model that calls each protected layer once, whose "
                "statistics are then those of what it makes. Received: "
                f"{often} (layer: calls)"
            )
        self.nodes = {
            path: self.graph.calls[id(layer)][0]
            for path, layer in self.layers.items()
        }
        paths = {id(node): path for path, node in self.nodes.items()}
        self._sources = {
            path: self._feeding(node, paths)
            for path, node in self.nodes.items()
        }

    def _feeding(self, node, paths):
        """Paths of the protected layers that feed a call without others."""
        found, pending, seen = set(), list(node.input_tensors), set()
        while pending:
            tensor = pending.pop()
            producer = self.graph.maker(tensor)
            if producer is None or id(producer) in seen:
                continue
            seen.add(id(producer))
            if id(producer) in paths:
                found.add(paths[id(producer)])
            else:
                pending.extend(producer.input_tensors)
        return found

    def blocks(self):
        """Layers to solve for together, and those whose inputs they make."""
        solved = set()
        for sources in [*self._sources.values(), set(self.layers)]:
            new = sources - solved
            solved |= new
            if new:
                yield (
                    [path for path in self.layers if path in new],
                    [
                        path
                        for path, some in self._sources.items()
                        if some & new and some <= solved
                    ],
                )

    def inputs(self, images) -> dict:
        """The model's inputs, by their tensors' ids."""
        images = scores.inputs_of(images, "images")
        given = inputs.flat(
            self._model, features.check_images(self._model, images)
        )
        return {
            id(tensor): array
            for tensor, array in zip(self.graph.inputs, given, strict=True)
        }

    def entering(self, path, known):
        """What enters a protected layer."""
        return self.graph.value(self.nodes[path].input_tensors[0], known)


@dataclasses.dataclass
class Reader:
    """A layer whose published statistics are equations, and these."""

    path: str
    mean: np.ndarray  # Without the kernel layer's bias.
    variance: np.ndarray
    live: np.ndarray  # Numbers of the outputs taken, all of which vary.
    pictures: int  # That the attacker has.
    windows: "Windows | None" = None


class Windows:
    """What a convolution's kernel meets, at some places of each picture.

    A channel's part of an output is a sum over one window. Windows at some
    places are far fewer than the outputs of a picture for each channel.

    Args:
        layer: A stock Keras convolution of one group.
        shape: Of what enters it, without the batch, channels last.
        count: How many pictures there are.
        live: Numbers of the outputs wanted.
    """

    def __init__(self, layer, shape, count, live):
        *space, channels = shape
        kernel = ops.convert_to_numpy(layer.kernel)
        taps = int(np.prod(layer.kernel_size))
        self._kernel = kernel.reshape(taps, channels, -1)[..., live]
        # A picture whose pixels are their own numbers, 0 outside of it, shows
        # which pixels each window has, by the layer's own strides and padding.
        numbers = 1.0 + np.arange(np.prod(space), dtype="float32")
        found = ops.conv(
            numbers.reshape(1, *space, 1),
            np.eye(taps, dtype="float32").reshape(*layer.kernel_size, 1, taps),
            strides=layer.strides,
            padding=layer.padding,
            data_format="channels_last",
            dilation_rate=layer.dilation_rate,
        )
        self._pixels = np.rint(ops.convert_to_numpy(found)).astype(int)
        self._pixels = self._pixels.reshape(-1, taps)
        places = len(self._pixels)
        # All draws of a search are of the same places.
        rng = np.random.default_rng(0)
        some = max(1, PLACES // count)
        self._places = np.stack(
            [rng.permutation(places)[:some] for _ in range(count)]
        )

    @staticmethod
    def fit(layer) -> bool:
        """Whether a layer's windows can be taken."""
        return (
            type(layer)
            in (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
            and layer.groups == 1
            and layer.padding in ("same", "valid")
        )

    def added(self, array, part):
        """What each channel alone adds: `(outputs, channels, places)`.

        Args:
            array: What enters the layer, channels last, for a part of the
                pictures.
            part: Slice of all pictures that they are.
        """
        flat = array.reshape(len(array), -1, array.shape[-1])
        outside = np.zeros_like(flat[:, :1])
        flat = np.concatenate([outside, flat], axis=1)
        pixels = self._pixels[self._places[part]]
        rows = np.arange(len(flat))[:, None, None]
        windows = flat[rows, pixels].reshape(-1, *self._kernel.shape[:2])
        # A product of arrays that are not in order takes four times as long.
        windows = np.ascontiguousarray(windows.transpose(2, 1, 0))
        made = self._kernel.transpose(1, 2, 0) @ windows
        return made.transpose(1, 0, 2)


class Block:
    """Protected layers that are solved for together.

    Args:
        flow: The model's `Flow`.
        group: Their paths.
        readers: Paths of layers that read what they, and known ones, make.
        known: Dict from tensors' ids to arrays over all pictures.

    Attributes:
        usual: Size of γ that is usual here.
    """

    usual = 1.0

    def __init__(self, flow, group, readers, known):
        self._flow, self._known = flow, known
        self.group = group
        self._count = len(next(iter(known.values())))
        layers = [flow.layers[path] for path in group]
        self.units = layers[0].adapter.units(layers[0].layer)
        self._normalized = {path: self._normalize(path) for path in group}
        found = [self._reader(path) for path in readers]
        self.readers = [reader for reader in found if reader is not None]

    @property
    def equations(self) -> int:
        """How many means and variances the readers publish."""
        return 2 * sum(len(reader.mean) for reader in self.readers)

    def roles(self):
        """What is unknown: pairs of path and role.

        Behind an addition, only the sum of its layers' β counts.
        """
        pairs = [
            (path, role)
            for path in self.group
            for role in self._flow.layers[path].function.roles
        ]
        shifts = [pair for pair in pairs if pair[1] == "beta"]
        return [pair for pair in pairs if pair not in shifts[1:]]

    def _parts(self, size):
        for at in range(0, self._count, size):
            part = slice(at, at + size)
            yield part, {i: array[part] for i, array in self._known.items()}

    def _normalize(self, path):
        """A layer's normalised outputs, by the pictures' own moments."""
        layer = self._flow.layers[path]
        outputs = []
        for _, known in self._parts(256):
            output = layer.layer(self._flow.entering(path, known))
            for part in layer.between:
                output = part(output)
            outputs.append(_float32(output))
        outputs = np.concatenate(outputs)
        axis = normalization.channel_axis(layer.normalization, outputs.ndim)
        axes = tuple(i for i in range(outputs.ndim) if i != axis)
        mean, variance = (
            moment(outputs, axis=axes, keepdims=True)
            for moment in (np.mean, np.var)
        )
        epsilon = layer.normalization.epsilon
        return (outputs - mean) / np.sqrt(variance + epsilon)

    def outputs(self, parameters, part=slice(None)) -> dict:
        """What the layers make of γ and β, by tensors' ids."""
        made = {}
        for path in self.group:
            layer, values = self._flow.layers[path], self._normalized[path]
            axis = normalization.channel_axis(layer.normalization, values.ndim)
            gamma, beta = (
                _along(value, axis, values.ndim).astype("float32")
                for value in parameters[path]
            )
            output = ops.convert_to_tensor(values[part] * gamma + beta)
            tensor = self._flow.nodes[path].outputs[0]
            made[id(tensor)] = _float32(layer.activation(output))
        return made

    def _reader(self, path):
        """The equations that a layer gives, if it does."""
        layer = self._flow.layers[path]
        if (
            not folding.is_direct(layer)
            or not normalization.tells_channels_apart(layer.normalization)
            or not self._is_channelwise(path)
        ):
            return None
        mean, variance = (
            ops.convert_to_numpy(value).astype("float64")
            for value in (
                layer.normalization.moving_mean,
                layer.normalization.moving_variance,
            )
        )
        bias = getattr(layer.layer, "bias", None)
        if bias is not None:
            mean = mean - ops.convert_to_numpy(bias)
        live = np.flatnonzero(variance > 1e-6 * np.max(variance))
        # With a γ of either sign, at least.
        most = max(1, PAIRS // (2 * self.units) ** 2)
        live = np.sort(np.random.default_rng(0).permutation(live)[:most])
        return Reader(
            path,
            mean[live],
            variance[live],
            live,
            self._count,
            self._windows(path, live),
        )

    def _windows(self, path, live):
        """The windows of a layer's inputs, if it is a plain convolution."""
        layer = self._flow.layers[path]
        if not Windows.fit(layer.layer):
            return None
        _, known = next(self._parts(1))
        neutral = np.ones(self.units), np.zeros(self.units)
        known.update(
            self.outputs({p: neutral for p in self.group}, slice(0, 1))
        )
        value = _float32(self._flow.entering(path, known))
        axis = layer.adapter.channel_axis(layer.layer)
        shape = np.moveaxis(value, axis, -1).shape[1:]
        return Windows(layer.layer, shape, self._count, live)

    def _is_channelwise(self, path):
        """Whether each channel of a layer's input is one of the group's."""
        layer = self._flow.layers[path]
        group = [self._flow.layers[own] for own in self.group]
        if layer.adapter.channels(layer.layer) != self.units or any(
            own.adapter.units(own.layer) != self.units for own in group
        ):
            return False
        odd = np.arange(self.units) % 2 == 1
        entering = []
        for signs in (1.0, -1.0, np.where(odd, -1.0, 1.0)):
            some = np.full(self.units, 0.1) * signs
            pair = (np.ones(self.units) * signs, some)
            _, known = next(self._parts(4))
            known.update(
                self.outputs({p: pair for p in self.group}, slice(0, 4))
            )
            value = _float32(self._flow.entering(path, known))
            entering.append(value)
        axis = layer.adapter.channel_axis(layer.layer)
        chosen = _along(odd, axis, value.ndim)
        return np.array_equal(
            entering[2], np.where(chosen, entering[1], entering[0])
        )

    def moments(self, candidates, products=True):
        """Moments of what each channel adds to each reader's outputs.

        Args:
            candidates: List of parameters of the group; channel c under
                candidate k is number k·C + c.
            products: Whether of all pairs; else of each and the sum over all
                channels under the first candidate.

        Returns:
            Per reader, first moments `(k·C, outputs)`, and second moments
            `(outputs, k·C, k·C)` or `(outputs, k·C)`.
        """
        totals = [[0.0, 0.0, 0] for _ in self.readers]
        at, size = 0, 4
        while at < self._count:
            part = slice(at, min(at + size, self._count))
            entering = [self._entering(some, part) for some in candidates]
            for i, reader in enumerate(self.readers):
                added = np.concatenate(
                    [
                        self._added(reader, arrays[i], part)
                        for arrays in entering
                    ],
                    axis=1,
                )
                other = added
                if not products:
                    other = added[:, : self.units].sum(axis=1, keepdims=True)
                total = totals[i]
                total[0] += added.sum(axis=-1, dtype="float64").T
                total[1] += added @ other.transpose(0, 2, 1)
                total[2] += added.shape[-1]
            at, size = (
                part.stop,
                max(4, min(64, CHUNK * (part.stop - at) // added.size)),
            )
        return [
            (first / count, (second if products else second[..., 0]) / count)
            for first, second, count in totals
        ]

    def _entering(self, parameters, part):
        """What enters the readers under parameters of the group."""
        known = {i: array[part] for i, array in self._known.items()}
        known.update(self.outputs(parameters, part))
        return [
            _float32(self._flow.entering(reader.path, known))
            for reader in self.readers
        ]

    def _added(self, reader, array, part):
        """What each channel alone adds: `(outputs, channels, places)`."""
        layer = self._flow.layers[reader.path]
        axis = layer.adapter.channel_axis(layer.layer) % array.ndim
        if reader.windows:
            last = np.moveaxis(array, axis, -1)
            return reader.windows.added(last, part)
        alone = np.stack(
            [
                array * _along(row, axis, array.ndim)
                for row in np.eye(self.units, dtype="float32")
            ]
        )
        outputs = _float32(layer.layer(alone.reshape(-1, *array.shape[1:])))
        bias = getattr(layer.layer, "bias", None)
        outputs = np.moveaxis(outputs, axis, -1)[..., reader.live]
        if bias is not None:
            outputs = outputs - ops.convert_to_numpy(bias)[reader.live]
        outputs = outputs.reshape(self.units, -1, outputs.shape[-1])
        return outputs.transpose(2, 0, 1)


def _float32(tensor):
    """As NumPy array, whatever the layers compute in: in bfloat16, sums of
    more than some hundred values stop growing.
    """
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def _along(values, axis, rank):
    """Values of channels in a shape that broadcasts over an array."""
    shape = [1] * rank
    shape[axis] = -1
    return np.asarray(values).reshape(shape)
