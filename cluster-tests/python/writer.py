"""Many stock clients that write for as long as standard input stays open, and keep a journal of what they were told.

Each client has its own list at root['writers'][name], a list of chunks of numbers. Each of its commits appends one
running number, used once whatever becomes of the commit. The journal, one file a client, has a line for each answer:
`A n time` acknowledged, `U n time` outcome unknown because the connection broke, `C n time` conflict, which means
definitely not stored; the time is of the machine's monotonic clock. A client whose connection breaks goes to the next
port of its list. What it was acknowledged must be there when it has connected again, wherever: if not, that is an
error. Prints what happened as one line of JSON.
"""
import argparse
import json
import os
import sys
import threading
import time
import traceback

from durus.error import ConflictError
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList

import common

CHUNK = 50
PAUSE_BEFORE_RECONNECT_S = 0.02


class Client(object):

    def __init__(self, name, ports, journal, stop, pace):
        self.name = name
        self.ports = ports
        self.stop = stop
        self.pace = pace
        path = os.path.join(journal, name + '.journal')
        self.journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.number = 0
        self.last_acknowledged = 0
        self.counts = {'A': 0, 'U': 0, 'C': 0}
        self.reconnects = 0
        self.read_conflicts = 0
        self.refused = 0
        self.gap = 0.0
        self.errors = []
        self.connection = None

    def note(self, kind, number):
        now = time.monotonic()
        os.write(self.journal, ('%s %d %.6f\n' % (kind, number, now)).encode())
        self.counts[kind] += 1
        return now

    def run(self):
        try:
            self.write_until_stopped()
        except Exception:
            self.errors.append(traceback.format_exc())

    def write_until_stopped(self):
        last = time.monotonic()
        while not self.stop.is_set():
            if self.connection is None and not self.reconnect():
                continue
            if self.commit_one():
                now = time.monotonic()
                self.gap = max(self.gap, now - last)
                last = now
            if self.pace:
                time.sleep(self.pace)
        if self.connection is not None:
            common.close(self.connection)

    def reconnect(self):
        port = self.ports[0]
        self.ports = self.ports[1:] + self.ports[:1]
        try:
            connection = common.connect(port)
            chunks = connection.get_root()['writers'][self.name]
            numbers = [number for chunk in chunks[-2:] for number in chunk]
        except common.LOST:
            self.refused += 1
            time.sleep(PAUSE_BEFORE_RECONNECT_S)
            return False
        except ConflictError:
            self.read_conflicts += 1
            return False
        if self.last_acknowledged and self.last_acknowledged not in numbers:
            self.errors.append('%s was acknowledged %d and sees only %s through port %d' % (
                self.name, self.last_acknowledged, numbers[-5:], port))
        self.connection = connection
        self.reconnects += 1
        return True

    def commit_one(self):
        """One commit of a fresh number; was it acknowledged?"""
        number = self.number = self.number + 1
        sent = False
        try:
            chunks = self.connection.get_root()['writers'][self.name]
            if not chunks or len(chunks[-1]) >= CHUNK:
                chunks.append(PersistentList())
            chunks[-1].append(number)
            sent = True
            self.connection.commit()
        except ConflictError:
            if sent:
                self.note('C', number)
            else:
                self.read_conflicts += 1
            try:
                self.connection.abort()
            except common.LOST:
                self.connection = None
            return False
        except common.LOST:
            if sent:
                self.note('U', number)
            self.connection = None
            return False
        self.note('A', number)
        self.last_acknowledged = number
        return True


def make_places(port, names):
    """The lists the clients write to, made by one client so that they start without conflicts."""
    connection = common.connect(port)
    root = connection.get_root()
    if 'writers' not in root:
        root['writers'] = PersistentDict()
    for name in names:
        assert name not in root['writers'], '%s has written here before' % name
        root['writers'][name] = PersistentList()
    connection.commit()
    common.close(connection)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--ports', required=True, help='comma-separated; client i begins at port i')
    parser.add_argument('--clients', type=int, default=3)
    parser.add_argument('--prefix', default='w')
    parser.add_argument('--journal', required=True, help='directory, made if need be')
    parser.add_argument('--pace', type=float, default=0.0, help='seconds between a client\'s commits')
    parser.add_argument('--stay', action='store_true', help='a client only ever uses its first port')
    options = parser.parse_args()
    os.makedirs(options.journal, exist_ok=True)
    ports = [int(port) for port in options.ports.split(',')]
    names = ['%s%d' % (options.prefix, i) for i in range(options.clients)]
    make_places(ports[0], names)
    stop = threading.Event()
    clients = []
    for i, name in enumerate(names):
        first = i % len(ports)
        own = [ports[first]] if options.stay else ports[first:] + ports[:first]
        clients.append(Client(name, own, options.journal, stop, options.pace))
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({
        'acknowledged': sum(client.counts['A'] for client in clients),
        'unknown': sum(client.counts['U'] for client in clients),
        'conflicts': sum(client.counts['C'] for client in clients),
        'read_conflicts': sum(client.read_conflicts for client in clients),
        'refused': sum(client.refused for client in clients),
        'reconnects': sum(client.reconnects - 1 for client in clients),
        'longest_gap_s': max(client.gap for client in clients),
        'errors': [error for client in clients for error in client.errors],
    }))


if __name__ == '__main__':
    main()
