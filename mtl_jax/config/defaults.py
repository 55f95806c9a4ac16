"""Every setting with its default, unit and reason: plain values, which pages change (`configs/`)."""

from __future__ import annotations

from typing import Any

# Of every experiment, beside its sections `model` and `contract`.
EXPERIMENT: dict[str, Any] = {
    "name": "experiment",
    "seed": 0,  # of initialisation, data order, augmentation and dropout
    "data_root": "",  # folder of datasets; "" means $MTL_JAX_DATA, or else ./data
    "image_size": 512,  # px, side of the network's square input where a stream does not say otherwise
    "resume": True,  # False refuses a work directory that holds a run already
    "smoke": False,  # two steps a stage on a handful of images, every file still written
    # a .npz or .pth of backbone features in torchvision's layout; or "mobilenet_v3_small", "mobilenet_v3_large" or
    # "efficientnet_b0", which downloads the published file once; "" starts from random weights
    "pretrained": "",
    "offline": False,  # True downloads nothing
    "cache_gb": 2.0,  # decoded training images kept in memory, GB over all streams of a stage
    "loader_threads": 2,  # threads that decode and augment
    "survey_images": 0,  # of each split that are decoded before the first step, to find what is wrong; 0 means all
    "tolerated_leakage_percent": 0.0,  # of the validation images that may be training images too
    "log_every_steps": 10,
    "checkpoint_every_seconds": 120.0,  # at most this much training is lost when a run is killed
    "keep_checkpoints": 2,  # of the stage in training; the older one serves where the newer is damaged
    "on_nan": "stop",  # at a step whose loss or gradient is not finite; "skip" leaves it out and counts it
    # also evaluates every task before the first stage and right before its own, for the forward transfer
    "forward_transfer": False,
    "example_images": 4,  # predictions per task shown in report.html
    "tasks": {},  # name -> kind and the keyword arguments of that kind's `make`
    "streams": {},  # name -> `STREAM`
    "stages": {},  # name -> `STAGE`
    "order": (),  # stage names in the order in which they are trained
}

MODEL: dict[str, Any] = {
    # or "mobilenet_v3_large", "efficientnet_b0", "yolov8n", "fast_scnn"; "plain_cnn" for small images and
    # random weights
    "backbone": "mobilenet_v3_small",
    "width_multiplier": 1.0,
    "output_stride": 32,  # px; 16 or 8 keep resolution by dilation (neck "two_conv")
    # "hard", the same layers for all tasks, as far as share_until says; or a backbone, neck and head for each
    # task: "independent", "cross_stitch" or "progressive"; or one network that each task reads in its own
    # way: "series_adapters", "attention", "mmoe", "cgc" (docs/sharing.md)
    "sharing": "hard",
    "experts": 3,  # necks that tasks mix, of "mmoe" and "cgc"
    # the last backbone stage that all tasks share, "stage_0" (stride 2 px) to "stage_3" (16 px): above it each
    # task has its own stages, neck and head; "all" shares everything but each task's slice of the head
    "share_until": "all",
    "neck": "fpn",  # one FPN layer at strides 8, 16, 32, or "two_conv" at the output stride
    "neck_channels": 96,
    "head_channels": 96,
    "head_layers": 3,  # the shared layers and the last 1x1, which is split by task
    # the head's shared layers: "dense", or "separable", a depthwise convolution and a 1x1 one: an eighth of the
    # operations, with head_kernel 5
    "head_convolution": "dense",
    "head_kernel": 3,  # cells, side of the shared layers' window
    # what tasks tell each other in the place of the head's last shared layer: "attention" lets every task take
    # in the others' features, "refinement" corrects its answers by theirs
    "head_exchange": "none",
    "dropout_rate": 0.1,
    # task -> neck_channels, head_channels, head_layers or dropout_rate of its branch; not where all is shared
    "branches": {},
    # px; above this stride of the backbone, and in neck and head, every batch norm is a task's own, and so each
    # task a pass of its own; up to it one pass serves all. 0: no norm is; 1: all are; 32: neck's and head's
    "norms_from": 0,
    "batch_norm_per_task": False,  # True is the same as norms_from=1
    # rank of what each task adds of its own to every shared 1x1 and dense kernel above norms_from, by part; it
    # is zero at first, so that a new task starts from what is shared. Rank 0 adds nothing
    "patches": {"backbone": 0, "neck": 0, "head": 0},
    # the same for depthwise kernels, whole, of the backbone and of a separable head
    "depthwise_patches": {"backbone": False, "neck": False, "head": False},
    # Share of the backbone's running statistics that a step keeps: torchvision's. A network that starts from
    # random weights and trains a few hundred steps wants 0.9.
    "batch_norm_momentum": 0.99,
    "compute_dtype": "float32",  # or "bfloat16"; parameters and statistics stay float32
    "max_params": 8_000_000,  # a larger network is refused
}

CONTRACT: dict[str, Any] = {
    "max_drop_percent": 5.0,  # relative, per task
    "max_train_seconds": 7200.0,
    "max_latency_ms": 150.0,  # one image, all tasks, decoding included
    "latency_image_size": 512,  # px
    # task -> work directory of a run whose final figure is the baseline; "" for the task's own stage
    "baseline_from": {},
}

STREAM: dict[str, Any] = {
    "source": "",  # a key of mtl_jax.data.sources.SOURCES
    "options": {},  # keyword arguments of the source
    "labels": {},  # task name -> the source's name for the label
    "train_split": "train",
    "val_split": "val",
    "image_size": 0,  # px; 0 means config.image_size
    "train_image_size": 0,  # px; 0 means image_size. Smaller crops make a step cheaper.
    # True shows an image's largest square, False the whole image between grey bars; True is usual for classes,
    # and only for labels of whole images
    "crop": False,
    "batch_size": 8,
    "eval_batch_size": 4,
    "max_boxes": 64,  # per image; the largest are kept
    "augment": {},  # keyword arguments of mtl_jax.data.transforms.Augment
}

STAGE: dict[str, Any] = {
    "streams": (),  # names of those that the stage trains on
    "epochs": 10.0,  # passes over the first stream
    # 0 takes a batch of every stream in every step. Above, each step takes a batch of one, drawn with
    # probability proportional to its size ** (1 / temperature): 1 by size, 2 by its square root, inf all alike
    "sampling_temperature": 0.0,
    # what becomes of the stage's tasks that a batch does not label: "forward" does not compute them; "mask"
    # computes them and drops their gradient; "weight" computes them and gives their loss the weight 0. In each
    # case their own parameters stay as they are.
    "update": "forward",
    "eval_every_epochs": 0.0,  # for the curves only; 0 evaluates at the end of the stage alone
    # optimizer
    "optimizer": "adamw",  # or "sgd"
    "learning_rate": 1e-3,  # peak
    "backbone_rate": 1.0,  # times learning_rate
    # pattern of parameters -> factor on learning_rate, beside backbone_rate: "branch_seg", "head/det", "neck",
    # "backbone/stage_[01]" (the backbone's stages, by the stride of their end as in model.share_until),
    # "backbone/until_8" (its stages up to 8 px), "backbone/kernels", "neck/kernels", "head/kernels" (what tasks
    # share but for batch norms), "patches", "norms", "head/norms"
    "rates": {},
    "schedule": "cosine",  # or "constant", "linear"
    "warmup_fraction": 0.05,  # of the stage's steps
    "weight_decay": 1e-4,  # on kernels only
    "momentum": 0.9,  # sgd
    "clip_norm": 10.0,  # global gradient norm; 0 is off
    "ema_decay": 0.0,  # of the weights that are evaluated and kept; 0 is off
    "balance": "sum",  # a key of mtl_jax.balance.METHODS
    "balance_options": {},  # keyword arguments of that method
    # where gradients of tasks that share their images meet: "params", the shared parameters, a backward pass a
    # task; or "features", what the tasks read last in common, and one backward pass through what leads there
    "gradient_space": "params",
    # log the cosines between the tasks' gradients where the method needs none too, at a backward pass a task
    "log_conflicts": False,
    "micro_batches": 1,  # parts a batch is taken in, whose gradients are averaged: the memory of one part
    # "everywhere"; or "new_levels": only in the head's layers of levels that no earlier task has read, which
    # keeps all other statistics as the stage found them; or "nowhere"
    "train_batch_norm": "everywhere",
    # an earlier task, from whose branch, norms and patches those of this stage's tasks start, where shapes
    # agree; "" is off
    "warm_start": "",
    # patterns of parameters that stay as they are, statistics too: "backbone", "head/kernels"; with epochs,
    # "backbone@:5" until the fifth (gradual unfreezing), "backbone/stage_0@2.5:" from then on (progressive)
    "freeze": (),
    # of the squared distances between the tasks' branches, or their networks with model.sharing="independent";
    # 0 is off, infinity keeps them alike
    "soft_sharing": 0.0,
    "loss_weights": {},  # task -> factor; 1 where absent
    # what keeps the tasks of earlier stages: key of mtl_jax.continual.METHODS -> its settings, by name those that
    # differ from their defaults, as in {"lwf": {"weight": 4.0}, "replay": {"images": 10, "batch_size": 2}}
    "keep": {},
}
