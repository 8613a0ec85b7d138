import torch


def images(n=3, height=48, width=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def prepared(backbone, n=3):
    return backbone.normalize(backbone.resize(images(n)))
