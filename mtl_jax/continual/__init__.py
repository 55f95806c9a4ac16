"""Learning one task after another: what keeps the old tasks, one file a method, all of the shape of `method.Method`."""

from mtl_jax.continual.agem import AGEM
from mtl_jax.continual.der import DER
from mtl_jax.continual.ewc import EWC
from mtl_jax.continual.gpm import GPM
from mtl_jax.continual.lwf import LwF
from mtl_jax.continual.mas import MAS
from mtl_jax.continual.method import Method
from mtl_jax.continual.paste import Paste
from mtl_jax.continual.replay import Replay
from mtl_jax.continual.si import SI

# A stage names them as keep={"lwf": {"weight": 4.0}}; their hooks run in this order.
METHODS: dict[str, type[Method]] = {
    # parameters are held near where old stages left them
    "ewc": EWC,
    "mas": MAS,
    "si": SI,
    # images of old stages come back
    "replay": Replay,
    "paste": Paste,
    "der": DER,
    "agem": AGEM,
    # the network before the stage teaches
    "lwf": LwF,
    # updates leave a space alone
    "gpm": GPM,
}
