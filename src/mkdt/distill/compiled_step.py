"""An inner step as two compiled functions: its gradient, and products with its second derivatives.

``torch.compile`` does not differentiate twice. So the derivatives are traced first: ``make_fx`` runs the function once
and records the operators that autograd calls. The compiled function then contains no derivative.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mkdt.networks.flat import LossFn

log = logging.getLogger("mkdt")


class CompiledStep:
    """Gradient and products of ``loss_fn``, compiled once for each batch size.

    Without a compiler the same traced operators run uncompiled, after one warning: slower, and with other last bits.

    Args:
        loss_fn: as for ``unroll``.
        learn_targets: whether ``sweep`` differentiates by the targets.
    """

    def __init__(self, loss_fn: LossFn, learn_targets: bool = True) -> None:
        self._loss_fn, self._learn_targets = loss_fn, learn_targets
        self._functions: dict[tuple[str, torch.Size], Callable[..., Any]] = {}
        self._warned = False

    def gradient(self, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Return g = grad l(theta), float [P]."""

        def gradient(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
            leaf = theta.detach().requires_grad_()
            return torch.autograd.grad(self._loss_fn(leaf, images, targets), leaf)[0]

        result: Tensor = self._call(gradient, theta, images, targets)
        return result

    def sweep(self, theta: Tensor, images: Tensor, targets: Tensor, lam: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return g, and <g, lam> differentiated by theta, images and, if they are learned, targets."""

        def sweep(theta: Tensor, images: Tensor, targets: Tensor, lam: Tensor) -> tuple[Tensor, ...]:
            leaves = [theta.detach().requires_grad_(), images.detach().requires_grad_()]
            wanted = targets.detach().requires_grad_(self._learn_targets)
            loss = self._loss_fn(leaves[0], leaves[1], wanted)
            (gradient,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
            leaves += [wanted] if self._learn_targets else []
            products = torch.autograd.grad(gradient, leaves, grad_outputs=lam, materialize_grads=True)
            return gradient.detach(), *products

        gradient, *products = self._call(sweep, theta, images, targets, lam)
        return gradient, products

    def _call(self, function: Callable[..., Any], *arguments: Tensor) -> Any:
        arguments = tuple(argument.detach() for argument in arguments)
        key = function.__name__, arguments[1].shape
        if key not in self._functions:
            from torch.fx.experimental.proxy_tensor import make_fx  # slow to import, and rarely needed

            traced = make_fx(function)(*arguments)
            self._functions[key] = self._compile(traced, arguments)
        with torch.no_grad():
            return self._functions[key](*arguments)

    def _compile(self, traced: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
        if self._warned:
            return traced
        torch._inductor.config.compile_threads = 1  # a job uses the threads of its rule, not a pool of processes
        # Each key has one size, so kernels for any size would gain nothing.
        compiled: Callable[..., Any] = torch.compile(traced, dynamic=False)
        try:
            with torch.no_grad():
                compiled(*arguments)  # the first call compiles
        except Exception as error:
            self._warned = True
            log.warning("compile: no compiler works here (%s), so the steps run uncompiled.", error)
            return traced
        return compiled
