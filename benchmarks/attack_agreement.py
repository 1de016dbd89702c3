"""Do our attacks find what the reference implementations find? On deterministic undefended networks, the same images.

    python -m benchmarks.attack_agreement [--images 597]

Ours are compared with torchattacks (PGD) and pyautoattack (APGD-CE, APGD-T, FAB-T, Square), at equal steps, restarts
and targets, on the shipped classifier and on one that is trained adversarially here (a minute), where attacks differ.
PGD and APGD-CE depend on where they start, so theirs and ours are means over ten seeds. Every candidate is judged by
the network itself after a projection of ours. Exit code 1 if ours leaves more than a point of accuracy above theirs
anywhere.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import pyautoattack
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

import lustral
from benchmarks import store
from lustral.attacks.apgd import APGD
from lustral.attacks.composed import Targeted
from lustral.attacks.fab import FAB
from lustral.attacks.gradients import Gradient
from lustral.attacks.losses import cross_entropy, dlr_toward
from lustral.attacks.pgd import PGD
from lustral.attacks.search import Attack
from lustral.attacks.square import Square
from lustral.classifiers.small import SmallCNN
from lustral.core.noise import Key
from lustral.core.threat import L2, Linf, Threat
from lustral.defence import Defence
from lustral.evaluate.protocol import Data

STEPS, PGD_STEPS, QUERIES, TARGETS = 100, 40, 5000, 9
ALLOWED = 0.01
STARTS = {"PGD": 10, "APGD-CE": 10}  # seeds that are averaged


def robust_net(eps: float, steps: int = 800) -> nn.Module:
    """A small network trained on PGD examples (Madry et al. 2018)."""
    torch.manual_seed(0)
    data, net = lustral.data("digits", "train"), SmallCNN(1, 10, 24)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    attack = PGD(Linf(eps), Gradient(None), cross_entropy, steps=7, patience=0)
    for step in range(steps):
        rows = torch.randint(len(data.y), (128,))
        net.eval()
        x = attack.run(Defence(net), data.x[rows], data.y[rows], Key(1).fold(step).rng(128)).x
        net.train()
        loss = F.cross_entropy(net(x), data.y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def ours(threat: Threat) -> dict[str, Attack]:
    """Lustral's attacks, for a victim without noise."""
    gradient, at_once = Gradient(None), {"patience": 1}
    found = {
        "APGD-CE": APGD(threat, gradient, cross_entropy, STEPS, **at_once),
        "APGD-T": Targeted(APGD(threat, gradient, dlr_toward, STEPS, **at_once), TARGETS),
        "FAB-T": Targeted(FAB(threat, gradient, STEPS), TARGETS),
    }
    if isinstance(threat, Linf):
        found |= {
            "PGD": PGD(threat, gradient, cross_entropy, PGD_STEPS, threat.eps / 4, **at_once),
            "Square": Square(threat, QUERIES),
        }
    return found


def theirs(net: nn.Module, threat: Threat, name: str, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The reference implementation of an attack."""
    torch.manual_seed(seed)
    if name == "PGD":
        return torchattacks.PGD(net, eps=threat.eps, alpha=threat.eps / 4, steps=PGD_STEPS)
    called = {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t", "FAB-T": "fab-t", "Square": "square"}[name]
    suite = pyautoattack.AutoAttack(
        net, norm=type(threat).__name__, eps=threat.eps, version="custom", attacks=[called], seed=seed
    )
    suite.apgd.n_iter = suite.apgd_targeted.n_iter = suite.fab.n_iter = STEPS
    suite.apgd.n_restarts = suite.fab.n_restarts = suite.apgd_targeted.n_restarts = 1
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = TARGETS
    suite.square.n_queries = QUERIES
    return lambda x, y: suite.run_standard_evaluation(x, y, batch_size=len(x))[0]


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, x0: Tensor, y: Tensor, threat: Threat) -> float:
    """Of the candidates, put into the threat if they are not."""
    return (net(threat.project(x, x0)).argmax(dim=1) == y).double().mean().item()


def run(side: str, attack: Attack, net: nn.Module, threat: Threat, name: str, data: Data, seed: int) -> Tensor:
    """Candidates of one run of one side."""
    if side == "ours":
        return attack.run(Defence(net), data.x, data.y, Key(seed).rng(data.ids)).x
    return theirs(net, threat, name, seed)(data.x, data.y)


def compare(images: int, attacks: list[str] | None) -> list[tuple[str, str, str, float, float, float, float]]:
    """(network, threat, attack, ours, theirs, and the seconds of both)."""
    data, rows = lustral.data("digits")[:images], []
    nets = {"digits-cnn": lustral.classifier("digits-cnn"), "digits-cnn, trained on PGD": robust_net(1 / 8)}
    threats = {
        "digits-cnn": (Linf(1 / 16), Linf(1 / 8), L2(0.5)),
        "digits-cnn, trained on PGD": (Linf(1 / 8), Linf(3 / 16), L2(1.0)),
    }
    for name, net in nets.items():
        for threat in threats[name]:
            for called, attack in ours(threat).items():
                if attacks and called not in attacks:
                    continue
                pair, spent = [], []
                for side in ("ours", "theirs"):
                    started = time.perf_counter()
                    found = [run(side, attack, net, threat, called, data, k) for k in range(STARTS.get(called, 1))]
                    spent.append(time.perf_counter() - started)
                    pair.append(statistics.mean(accuracy(net, x, data.x, data.y, threat) for x in found))
                rows.append((name, f"{type(threat).__name__} {threat.eps:g}", called, *pair, *spent))
                print("  ".join(str(part) for part in rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=597)
    parser.add_argument("--attacks", nargs="+", help="some of PGD, APGD-CE, APGD-T, FAB-T and Square; default: all")
    options = parser.parse_args()
    rows = compare(options.images, options.attacks)
    lines = [[*names, f"{a:.2%}", f"{b:.2%}", f"{100 * (a - b):+.2f}"] for *names, a, b, _, _ in rows]
    print(found := store.Table(["network", "threat", "attack", "ours", "theirs", "difference"], lines))
    store.keep("attack-agreement", {"agreement": [found]})
    return int(any(mine > other + ALLOWED for _, _, _, mine, other, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
