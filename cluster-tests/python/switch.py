"""An Ethernet switch between network namespaces, with faults: one TAP device, eth0, in each of the namespaces named.

A station's hardware address ends in its number, from 1; frames go by it, or to all others. Each line on standard input
is JSON with all faults there are to be from then on, and is answered `ok`:
`cut`, a list of [from, to], the stations whose frames do not reach which; `loss`, in thousands; `delay_ms`, least and
most, drawn for each frame by itself, so frames overtake each other. Ends when standard input does.

The kernel's own means (netem) are a module that many kernels lack, and one-way cuts, loss and delay are all one here.
"""
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454ca
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
FRAME_BYTES_MAX = 65536
FRAMES_AT_ONCE = 64
# What waits in a switch is bounded; past that, frames are lost, as in any.
WAITING_MAX = 20000


def plug(namespace):
    """A TAP device in the namespace, by its file descriptor. This thread stays in that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.open('/run/netns/' + namespace, os.O_RDONLY)
    if libc.setns(place, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), 'setns ' + namespace)
    os.close(place)
    tap = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack('16sH22x', b'eth0', IFF_TAP | IFF_NO_PI))
    return tap


class Switch(object):

    def __init__(self, seed, taps):
        self.random = random.Random(seed)
        self.taps = taps
        self.cut = set()
        self.loss = 0
        self.delay = [0, 0]
        self.waiting = []
        self.count = 0

    def order(self, line):
        faults = json.loads(line)
        self.cut = set(tuple(pair) for pair in faults.get('cut', []))
        self.loss = faults.get('loss', 0)
        self.delay = faults.get('delay_ms', [0, 0])
        os.write(1, b'ok\n')

    def frames_from(self, station):
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = os.read(self.taps[station], FRAME_BYTES_MAX)
            except OSError:
                return  # No more for now, or the device is down.
            to = frame[5] - 1
            if frame[0] & 1 or not 0 <= to < len(self.taps):
                for other in range(len(self.taps)):
                    if other != station:
                        self.pass_on(station, other, frame)
            elif to != station:
                self.pass_on(station, to, frame)

    def pass_on(self, station, to, frame):
        if (station, to) in self.cut or self.random.randrange(1000) < self.loss:
            return
        least, most = self.delay
        if most == 0:
            self.deliver(to, frame)
        elif len(self.waiting) < WAITING_MAX:
            self.count += 1
            due = time.monotonic() + self.random.uniform(least, most) / 1e3
            heapq.heappush(self.waiting, (due, self.count, to, frame))

    def deliver(self, to, frame):
        try:
            os.write(self.taps[to], frame)
        except OSError:
            pass  # Its queue is full, or the device is down: the frame is lost.

    def deliver_due(self):
        """Milliseconds until the next is due; None if none waits."""
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            _, _, to, frame = heapq.heappop(self.waiting)
            self.deliver(to, frame)
        return max(0.0, self.waiting[0][0] - now) * 1e3 if self.waiting else None

    def run(self):
        poll = select.poll()
        poll.register(0, select.POLLIN)
        station_of = dict((tap, station) for station, tap in enumerate(self.taps))
        for tap in self.taps:
            poll.register(tap, select.POLLIN)
        said = b''
        while True:
            for found, _ in poll.poll(self.deliver_due()):
                if found in station_of:
                    self.frames_from(station_of[found])
                    continue
                more = os.read(0, 65536)
                if not more:
                    return
                said += more
                while b'\n' in said:
                    line, said = said.split(b'\n', 1)
                    self.order(line)


def main():
    taps = [plug(namespace) for namespace in sys.argv[2:]]
    os.write(1, b'ok\n')
    Switch(int(sys.argv[1]), taps).run()


if __name__ == '__main__':
    main()
