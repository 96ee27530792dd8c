"""How ChainerMN broadcasts a shared layer: with the order of its W."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import on_import
from chainer_shared_patch.links import SharedLinear
from chainer.backends.cuda import to_cpu
from chainer.link import Link


def _bcast_orders(comm: Any, model: Link) -> None:
    links = {
        path: link
        for path, link in model.namedlinks()
        if isinstance(link, SharedLinear) and link.in_size is not None
    }
    orders = None
    if comm.rank == 0:
        orders = {
            path: (link.common_num, to_cpu(link.order))
            for path, link in links.items()
        }
    for path, (common_num, order) in comm.bcast_obj(orders).items():
        link = links.get(path)
        if link is None or link.common_num != common_num:
            raise ValueError(
                f'bcast_data(): {path} is a SharedLinear with common_num '
                f'{common_num} on rank 0, but on rank {comm.rank} {link}'
            )
        link.order = link.device.send(order)


def _add_orders(class_name: str, module: Any) -> None:
    communicator = getattr(module, class_name)
    bcast_data = communicator.bcast_data

    @functools.wraps(bcast_data)
    def bcast_data_and_orders(self: Any, model: Link) -> None:
        bcast_data(self, model)
        _bcast_orders(self, model)

    communicator.bcast_data = bcast_data_and_orders


def register() -> None:
    """Teaches ChainerMN's communicators about orders, once imported."""
    for name, class_name in (
        ('mpi_communicator_base', 'MpiCommunicatorBase'),
        ('non_cuda_aware_communicator', 'NonCudaAwareCommunicator'),
        ('pure_nccl_communicator', 'PureNcclCommunicator'),
    ):
        on_import(
            'chainermn.communicators.' + name,
            functools.partial(_add_orders, class_name),
        )
