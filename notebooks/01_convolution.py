# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Convolution and receptive fields, by eye
#
# What a convolution computes, what it costs, and how much of an image a unit of a network sees. Everything here is
# `cnnlab.analysis`, which needs no training and no GPU; at the command line it is `cnnlab analyze`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from sklearn.datasets import load_sample_image

from cnnlab import analysis

# %% [markdown]
# ## A kernel looks for what it looks like
#
# A checkerboard of 3x3 laid over one of 5x5: where the two agree the products add up to 5, one pixel further they
# never meet. `conv2d` computes all positions at once, `conv2d_loops` shows how.

# %%
checkerboard = (np.indices((5, 5)).sum(0) + 1) % 2
print(analysis.conv2d(checkerboard, checkerboard[:3, :3]).astype(int))
assert (analysis.conv2d_loops(checkerboard, checkerboard[:3, :3]) == [[5, 0, 5], [0, 5, 0], [5, 0, 5]]).all()

# %% [markdown]
# Four kernels that somebody thought of, on a photograph. A network finds such kernels by itself.

# %%
photograph = load_sample_image("china.jpg")[60:360, 100:500].mean(-1)
figure, axes = plt.subplots(1, 5, figsize=(15, 3), layout="constrained")
axes[0].imshow(photograph, cmap="gray")
axes[0].set_title("photograph")
for axis, (name, kernel) in zip(axes[1:], analysis.KERNELS.items(), strict=True):
    axis.imshow(analysis.conv2d(photograph, kernel), cmap="gray")
    axis.set_title(name)
for axis in axes:
    axis.axis("off")

# %% [markdown]
# ## What kinds of convolution cost
#
# From 64 to 128 channels of 56x56. A depthwise convolution and a 1x1 one after it do, for an eighth of the
# multiply-adds, nearly what a standard one does: that is what MobileNet and EfficientNet live on.

# %%
for kind in analysis.convolutions(inputs=64, outputs=128, kernel=3, size=56):
    cost = f"{kind.parameters:8,} parameters {kind.multiply_adds / 1e6:8.1f} M multiply-adds"
    print(f"{kind.name:22}{cost} {kind.relative:8.3f}")

# %% [markdown]
# ## How much of the image a unit sees
#
# Each window adds what it reaches over; each stride makes the next window's steps longer. VGG-16, to its third pooling:

# %%
window, pool = analysis.Layer(kernel=3, padding=1), analysis.Layer(kernel=2, stride=2)
vgg = [window, window, pool, window, window, pool, window, window, window, pool]
for layer, field in zip(vgg, analysis.receptive_field(vgg), strict=True):
    print(f"{layer.kernel}x{layer.kernel}, stride {layer.stride}: sees {field.size:3g} pixels, every {field.jump:g}")

# %% [markdown]
# For whole networks nothing has to be listed: `network_cost` follows the operations of any module, without computing
# anything. The dashed line is the image; what runs beyond it sees all of it, long before the last layer.

# %%
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
for name in ("vgg16", "resnet18", "resnet50", "convnext_tiny", "efficientnet_b0"):
    with torch.device("meta"):
        network = timm.create_model(name)
    cost = analysis.network_cost(network, (3, 224, 224))
    sizes = [layer.receptive_field.sizes[0] for layer in cost.layers if layer.receptive_field.sizes is not None]
    axis.plot(np.linspace(0, 1, len(sizes)), sizes, label=f"{name}, {cost.multiply_adds / 1e9:.1f} G multiply-adds")
axis.axhline(224, color="gray", linestyle="--")
axis.set(xlabel="depth, from the first layer to the last", ylabel="receptive field, pixels", yscale="log")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# That is how far a unit *can* see. Where it looks most is a different matter: the gradient of one unit of a ResNet-18
# with random weights fades towards the edge of its field (Luo et al. 2016).

# %%
network = timm.create_model("resnet18", zero_init_last=False).eval()
images = torch.zeros(1, 3, 224, 224).requires_grad_()
features = network.layer2(network.layer1(network.maxpool(network.act1(network.bn1(network.conv1(images + 1))))))
features[0, :, 14, 14].sum().backward()
seen = analysis.network_cost(network, (3, 224, 224))
field = next(layer.receptive_field.fields[0] for layer in reversed(seen.layers) if layer.name.startswith("layer2"))
reach = images.grad[0].abs().sum(0)
low, high = field.low + 14 * field.jump, field.high + 14 * field.jump
figure, axis = plt.subplots(figsize=(4, 4))
axis.imshow(reach.sqrt())
axis.plot([low, high, high, low, low], [low, low, high, high, low], color="white")
axis.set(title=f"layer2: {field.size:g} pixels", xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## Normalization, side by side
#
# Over what the mean is taken decides whether an image's result depends on the others of its batch: it does for batch
# norm, which is why very small batches want group norm (`--model.group_norm`).

# %%
for norm in analysis.normalizations():
    depends = "depends on the batch" if norm.depends_on_batch else "does not"
    print(f"{norm.name:26}mean over {norm.axes:18}{depends}")

# %% [markdown]
# ## EfficientNet's scaling
#
# The paper's formula makes a network deeper, wider and finer at once, 1.2, 1.1 and 1.15 times for each step. What was
# released differs, and costs (counted here) less than the doubling that the formula aims at.

# %%
for scaled in analysis.efficientnet_family():
    formula, released = scaled.formula, scaled.released
    print(
        f"{scaled.name}: depth {formula.depth:.2f} -> {released.depth}, width {formula.width:.2f} -> {released.width}, "
        f"{formula.resolution} -> {released.resolution} pixels, {scaled.relative:.1f} of {scaled.expected:g} times"
    )

# %% [markdown]
# The same at the command line: `cnnlab analyze resnet50`, `cnnlab analyze --compare resnet50 convnext_tiny`,
# `cnnlab analyze --convolutions`, `cnnlab recommend --data photos`.
