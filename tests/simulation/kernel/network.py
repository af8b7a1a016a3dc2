"""Connections between simulated processes: ordered like TCP, with delay, loss of the newest frames, and cut edges."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.simulation.kernel.world import SECOND_NS, World

KEEPALIVE_S = 3.0
"""Time without a frame after which both ends of a cut connection give it up, seconds. NATS and gRPC are set to about this."""
USUAL_DELAY_S = (0.000_1, 0.001)

Receive = Callable[[Any], None]
Closed = Callable[[], None]


class Edge:
    """The way between two processes. Its faults hold for all connections over it."""

    def __init__(self) -> None:
        self.is_cut = False
        """Whether nothing gets through. Frames wait, and the connection breaks after KEEPALIVE_S."""
        self.delay_s = USUAL_DELAY_S
        """Least and greatest delay of a frame, seconds."""
        self.connections: dict[Connection, None] = {}


class End:
    """One end of a connection. The owner sets both callbacks before it sends."""

    def __init__(self, connection: Connection, other: int) -> None:
        self.connection = connection
        self.receive: Receive = lambda _: None
        self.closed: Closed = lambda: None
        self._other = other

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as this end knows."""
        return self.connection.is_open

    def send(self, frame: Any) -> None:
        """Sends a frame. If the connection is broken, the frame is lost."""
        self.connection.send(frame, to=self._other)

    def close(self) -> None:
        """Closes the connection. Frames that were sent before arrive before the other end sees it."""
        self.connection.close(self._other)


class Connection:
    """An ordered connection between two processes."""

    def __init__(self, world: World, edge: Edge) -> None:
        self.ends = (End(self, 1), End(self, 0))
        self.is_open = True
        self._world, self._edge = world, edge
        self._arrives_ns = [0, 0]
        self._held: deque[tuple[int, Any]] = deque()
        """Frames that wait for the edge to heal, with the end that they go to."""
        edge.connections[self] = None

    def send(self, frame: Any, to: int) -> None:
        """Sends a frame to an end."""
        if not self.is_open:
            return
        if self._held or self._edge.is_cut:
            self._held.append((to, frame))
            return
        world = self._world
        least, most = self._edge.delay_s
        when_ns = world.now_ns + int((least + (most - least) * world.random.random()) * SECOND_NS)
        when_ns = self._arrives_ns[to] = max(when_ns, self._arrives_ns[to])
        world.at_ns(when_ns, partial(self._arrive, to, frame))

    def _arrive(self, to: int, frame: Any) -> None:
        if not self.is_open:
            return
        if self._edge.is_cut:
            self._held.append((to, frame))
            return
        self.ends[to].receive(frame)

    def stall(self) -> None:
        """Begins the time after which both ends give up this connection, unless its edge heals before."""
        self._world.after(KEEPALIVE_S, self._give_up)

    def _give_up(self) -> None:
        if self._edge.is_cut:
            self.sever()

    def resume(self) -> None:
        """Delivers what waited while the edge was cut."""
        held, self._held = self._held, deque()
        for to, frame in held:
            self.send(frame, to=to)

    def sever(self) -> None:
        """Breaks the connection. Frames on their way are lost, and both ends see it."""
        if self.is_open:
            self._forget()
            for end in self.ends:
                self._world.after(self._world.between(0.0, 0.01), partial(self._notify, end))

    def close(self, to: int) -> None:
        """Closes the connection from one end, after the frames that are on their way to the other."""
        if not self.is_open:
            return
        if self._edge.is_cut:
            self._forget()
            self._world.after(KEEPALIVE_S, partial(self._notify, self.ends[to]))
            return
        when_ns = max(self._world.now_ns + int(self._edge.delay_s[0] * SECOND_NS), self._arrives_ns[to])
        self._world.at_ns(when_ns, partial(self._end, to))

    def _end(self, to: int) -> None:
        if self.is_open:
            self._forget()
            self._notify(self.ends[to])

    def _forget(self) -> None:
        self.is_open = False
        self._held.clear()
        self._edge.connections.pop(self, None)

    def _notify(self, end: End) -> None:
        end.closed()


class Network:
    """All edges, listeners and faults of the connections."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._edges: dict[tuple[str, str], Edge] = {}
        self._listeners: dict[str, tuple[str, Callable[[End, str], None]]] = {}

    def edge(self, a: str, b: str) -> Edge:
        """The way between two processes."""
        key = (a, b) if a < b else (b, a)
        if key not in self._edges:
            self._edges[key] = Edge()
        return self._edges[key]

    def listen(self, address: str, process: str, accept: Callable[[End, str], None]) -> None:
        """Accepts connections to an address: `accept` gets the server's end and the caller's name."""
        self._listeners[address] = (process, accept)

    def close_listeners(self, process: str) -> None:
        """Refuses connections to all addresses of a process."""
        for address in [address for address, (owner, _) in self._listeners.items() if owner == process]:
            del self._listeners[address]

    def connect(self, process: str, address: str) -> End | None:
        """Opens a connection and returns the caller's end; None if it is refused or the edge is cut."""
        listener = self._listeners.get(address)
        if listener is None:
            return None
        owner, accept = listener
        edge = self.edge(process, owner)
        if edge.is_cut:
            return None
        connection = Connection(self._world, edge)
        accept(connection.ends[1], process)
        return connection.ends[0]

    def died(self, process: str) -> None:
        """Ends all connections of a process that has crashed. Its newest frames may be lost with it."""
        self.close_listeners(process)
        for key, edge in self._edges.items():
            if process in key:
                for connection in list(edge.connections):
                    connection.sever()

    def sever(self, a: str, b: str) -> None:
        """Breaks all connections between two processes, once."""
        for connection in list(self.edge(a, b).connections):
            connection.sever()

    def cut(self, a: str, b: str) -> None:
        """Cuts the way between two processes."""
        edge = self.edge(a, b)
        edge.is_cut = True
        for connection in list(edge.connections):
            connection.stall()

    def heal(self, a: str, b: str) -> None:
        """Ends all faults of the way between two processes."""
        edge = self.edge(a, b)
        edge.is_cut, edge.delay_s = False, USUAL_DELAY_S
        for connection in list(edge.connections):
            connection.resume()
