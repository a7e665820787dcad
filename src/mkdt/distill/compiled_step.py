"""A step of the inner loop as two compiled functions: its gradient, and its products with second derivatives.

``torch.compile`` does not differentiate twice. So the derivatives are traced first (``make_fx`` runs the function
once and writes down the plain operators that autograd called), and what is compiled has no derivative in it any more.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mkdt.networks.flat import LossFn

log = logging.getLogger("mkdt")


class CompiledStep:
    """Gradient and products of ``loss_fn``, compiled once a shape of batch.

    Args:
        loss_fn: as for ``match_trajectory``.
        learn_targets: whether ``sweep`` differentiates by the targets.

    Where no compiler is found, the same traced operators run uncompiled, after one warning: slower, and with other
    last bits.
    """

    def __init__(self, loss_fn: LossFn, learn_targets: bool = True) -> None:
        self._loss_fn, self._learn_targets = loss_fn, learn_targets
        self._functions: dict[tuple[str, torch.Size], Callable[..., Any]] = {}
        self._warned = False

    def gradient(self, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """g = grad l(theta), float [P]."""

        def gradient(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
            leaf = theta.detach().requires_grad_()
            return torch.autograd.grad(self._loss_fn(leaf, images, targets), leaf)[0]

        result: Tensor = self._call(gradient, theta, images, targets)
        return result

    def sweep(self, theta: Tensor, images: Tensor, targets: Tensor, lam: Tensor) -> tuple[Tensor, list[Tensor]]:
        """g, and <g, lam> differentiated by theta, images and, where they are learned, targets."""

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
            from torch.fx.experimental.proxy_tensor import make_fx  # slow to import, and mostly not needed

            traced = make_fx(function)(*arguments)
            self._functions[key] = self._compile(traced, arguments)
        with torch.no_grad():
            return self._functions[key](*arguments)

    def _compile(self, traced: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
        if self._warned:
            return traced
        torch._inductor.config.compile_threads = 1  # a job takes its rule's threads, not a pool of processes
        # A tensor's sizes never change under one key: nothing to gain from kernels for any size.
        compiled: Callable[..., Any] = torch.compile(traced, dynamic=False)
        try:
            with torch.no_grad():
                compiled(*arguments)  # compiles now
        except Exception as error:
            self._warned = True
            log.warning("distill.compile: there is no working compiler here (%s): it runs uncompiled.", error)
            return traced
        return compiled
