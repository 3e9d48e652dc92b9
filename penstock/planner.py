"""World → numbered World and Plan: give out the numbers that are missing, and compile. Pure.

Backends are found through identities, and listeners are known only when all is compiled: so a World with
something new in it is compiled twice, once to learn what needs a port and once with it.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.allocate import allocate
from penstock.collection import uncollected
from penstock.compiler import Compiler, Names, names
from penstock.facts import Facts
from penstock.plan import Plan
from penstock.world import Allocations, Settings, World


class Planner:
    """Plans one World after the other; what did not change is not computed again."""

    def __init__(self) -> None:
        self._compiler = Compiler()
        self._settled: tuple[tuple[Names, tuple[str, ...], Settings], Allocations] | None = None
        """What was wanted last, and what was given."""

    @property
    def facts(self) -> Facts | None:
        """The stages of the last compilation, for whoever explains it."""
        return self._compiler.facts

    @uncollected
    def plan(self, world: World) -> tuple[World, Plan]:
        """Raises AllocationError if there are not enough numbers; then nothing has changed."""
        self._compiler.follow(world)
        world = self._numbered(world, tuple(world.allocations.listener_ports))
        plan = self._compiler.compile(world)
        if plan.unallocated:
            world = self._numbered(world, plan.listener_names)
            plan = self._compiler.compile(world)
        return world, plan

    def _numbered(self, world: World, listeners: tuple[str, ...]) -> World:
        wanted = (self._compiler.names(world), listeners, world.settings)
        if self._settled is None or self._settled[1] is not world.allocations or self._settled[0] != wanted:
            world = numbered(world, listeners, wanted[0])
            self._settled = (wanted, world.allocations)
        return world


def numbered(world: World, listeners: tuple[str, ...], wanted: Names | None = None) -> World:
    """`world` with a number for all that is known by one, and a port for each of `listeners`."""
    wanted = wanted or names(world)
    allocations = allocate(
        world.allocations,
        identities=wanted.identities,
        vips=wanted.vips,
        listener_names=listeners,
        service_names=wanted.services,
        prefixes=wanted.prefixes,
        gateways=wanted.gateways,
        balancers=wanted.balancers,
        node_ports=wanted.node_ports,
        settings=world.settings,
    )
    # What a World knows of its documents by kind is worth keeping.
    if allocations == world.allocations:
        return world
    found = replace(world, allocations=allocations)
    found.follow(world, ())
    return found
