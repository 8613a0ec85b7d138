"""Pictures and a backbone that are known by heart, for tests."""

import numpy as np
import torch

from src.activation_spec import ActivationSpec


class Corner(torch.nn.Module):
    """A backbone as an embedder asks one: tokens of the top left pixel plus the token's number.

    It has no memory for more pictures than `at_most`, and notes the batches it saw.
    """

    def __init__(self, at_most=100, n_tokens=1):
        super().__init__()
        self.description, self.transform = "the top left pixel", "none"
        self.at_most, self.seen = at_most, []
        self._n_tokens = n_tokens
        self.chosen = ("output",)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def d_in(self, layer=None):
        return 3

    def n_tokens(self, layer=None, tokens=None):
        return self._n_tokens

    def spec(self, layer=None):
        return ActivationSpec(model="corner", layer="output")

    def resize(self, images):
        return images if images.shape[-1] == 4 else torch.zeros((*images.shape[:-2], 4, 4), dtype=torch.uint8)

    def normalize(self, images):
        return images.float()

    def activations(self, images, layers=None, tokens=None):
        if len(images) > self.at_most:
            raise torch.cuda.OutOfMemoryError
        self.seen.append(len(images))
        places = torch.arange(self._n_tokens)[None, :, None]
        return {"output": images[:, None, :, 0, 0] * self.weight + places}


class Drawn:
    """Pictures whose top left pixel is (number, x, y); notes how many were asked for at a time."""

    def __init__(self, number, coords):
        self.number, self.coords, self.asked = number, coords, []

    @property
    def n_pictures(self):
        return len(self.coords)

    def read(self, start, stop, resize):
        self.asked.append(stop - start)
        pictures = np.zeros((stop - start, 3, 4, 4), dtype=np.uint8)
        pictures[:, :, 0, 0] = np.column_stack([np.full(stop - start, self.number), self.coords[start:stop]])
        return resize(torch.from_numpy(pictures))
