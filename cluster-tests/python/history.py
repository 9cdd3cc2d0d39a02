"""One stock client that works on the cells for as long as standard input stays open, and records all that it asks
and is told, as cluster-tests/src/history/record.rs reads it.

What it does is drawn from a seed: counting cells up after looking at others, putting new cells on shelves and letting
old ones fall off, carrying a cell from one shelf to another in two transactions, looking at everything, changing its
mind, packing. Now and then it goes to another node by itself. When its connection breaks it goes on at the next of its
nodes. Conflicts and broken connections are part of a client's life; whatever else is raised is an error.
Prints what happened as one line of JSON.
"""
import argparse
import json
import os
import random
import sys
import threading
import time
import traceback

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import ConflictError, DurusKeyError, ReadConflictError
from durus.utils import ShortRead

import cells
from cells import Cell

# A refused connection is an AssertionError in ClientStorage; connect() makes it an OSError.
LOST = (ShortRead, OSError)
PAUSE_BEFORE_RECONNECT_S = 0.02
# So few that objects are dropped from the cache and loaded again.
CACHE = 20
SHELF_HOLDS = 4


def now():
    return time.monotonic_ns()


class Record(object):

    def __init__(self, path):
        self.file = open(path, 'a', buffering=1)

    def line(self, kind, **what):
        what['k'] = kind
        self.file.write(json.dumps(what, separators=(',', ':')) + '\n')


class RecordedStorage(ClientStorage):
    """The stock client storage, which notes what goes over the wire and changes nothing."""

    def __init__(self, record, host, port):
        self.record = record
        self.tag = None
        self.reads = {}
        ClientStorage.__init__(self, host=host, port=port)

    def load(self, oid):
        asked = now()
        number = cells.number(oid)
        try:
            found = ClientStorage.load(self, oid)
        except ReadConflictError:
            self.record.line('invalid', t=(asked, now()), oid=number)
            raise
        except DurusKeyError:
            self.record.line('missing', t=(asked, now()), oid=number)
            raise
        self.record.line('load', t=(asked, now()), oid=number, tag=cells.tag_in(found))
        return found

    def sync(self):
        asked = now()
        oids = list(ClientStorage.sync(self))
        self.record.line('sync', t=(asked, now()), oids=[cells.number(oid) for oid in oids])
        return oids

    def end(self, handle_invalidations=None):
        asked = now()
        writes = [cells.number(oid) for oid in self.records]
        # When C was answered, and with what. The storage says nothing of an answer without oids.
        told = [asked, []]
        gave_up = []

        def handle(oids):
            told[:] = [now(), [cells.number(oid) for oid in oids]]
            try:
                handle_invalidations(oids)
            except ConflictError:
                gave_up.append(True)
                raise

        outcome = None
        try:
            ClientStorage.end(self, handle)
            outcome = 'acknowledged'
        except ConflictError:
            outcome = 'given_up' if gave_up else 'conflict'
            raise
        finally:
            # Nothing more is known if the connection broke: then there is no answer.
            answered = now()
            self.record.line('begin', t=(asked, told[0]), oids=told[1])
            self.record.line('send', t=told[0], tag=self.tag, reads=sorted(self.reads.items()), writes=writes)
            if outcome is not None:
                self.record.line('answer', t=answered, outcome=outcome)


class Client(object):

    def __init__(self, options, stop):
        self.number = options.number
        self.nodes = [parse_node(text) for text in options.nodes.split(',')]
        self.home = self.nodes[0]
        self.stop = stop
        self.pace = options.pace
        self.stay = options.stay
        self.packs = options.packs
        self.random = random.Random(options.seed)
        self.record = Record(os.path.join(options.records, 'c%d.json' % options.number))
        self.connection = None
        self.node = None
        self.hand = None
        self.sent = 0
        self.tag = None
        self.reads = {}
        self.changed = {}
        self.counts = dict.fromkeys(
            ['acknowledged', 'conflicts', 'lost', 'refused', 'hops', 'packs', 'looks', 'dropped'], 0)

    def run(self):
        while not self.stop.is_set():
            try:
                if self.connection is None:
                    self.connect()
                elif not self.stay and self.random.random() < 0.02:
                    self.hop()
                else:
                    self.transaction()
            except ConflictError:
                self.counts['conflicts'] += 1
                self.give_up()
            except LOST as error:
                self.lost(error)
            if self.pace:
                time.sleep(self.random.uniform(0.5, 1.5) * self.pace)
        self.leave()

    def connect(self):
        self.node = self.nodes[0]
        name, host, port = self.node
        self.nodes = self.nodes[1:] + self.nodes[:1]
        try:
            storage = RecordedStorage(self.record, host, port)
        except (AssertionError, ShortRead, OSError):
            self.counts['refused'] += 1
            time.sleep(PAUSE_BEFORE_RECONNECT_S)
            return
        self.record.line('open', node=name)
        self.hand = None
        self.connection = Connection(storage, cache_size=CACHE)
        root = self.connection.get_root()
        self.cells = root['cells']
        self.shelves = root['shelves']

    def lost(self, error):
        self.counts['lost'] += 1
        why = '%s: %s' % (type(error).__name__, error)
        self.record.line('lost', t=now(), node=self.node[0], why=why)
        self.connection = None

    def leave(self):
        if self.connection is None:
            return
        try:
            self.connection.get_storage().close()
        except OSError:
            pass  # It is gone already.
        self.connection = None

    def hop(self):
        self.counts['hops'] += 1
        self.leave()
        self.random.shuffle(self.nodes)

    def give_up(self):
        self.hand = None
        try:
            self.connection.abort()
        except LOST as error:
            self.lost(error)

    # ---- transactions ----

    def transaction(self):
        draw = self.random.random()
        if self.packs and draw < 0.02:
            self.counts['packs'] += 1
            self.hand = None
            self.connection.pack()
            return
        self.sent += 1
        self.tag = cells.make_tag(self.number, self.sent)
        self.reads = {}
        self.changed = {}
        if self.random.random() < 0.6:
            self.connection.abort()
        work = self.random.choices(
            [self.count, self.grow, self.carry, self.look_around, self.waver], [10, 5, 5, 1, 1])[0]
        if not work():
            self.connection.abort()
            return
        for cell in self.changed.values():
            tag, count = cells.split_mark(cell.mark)
            cell.mark = cells.make_mark(self.tag, count + 1)
        storage = self.connection.get_storage()
        storage.tag, storage.reads = self.tag, self.reads
        self.connection.commit()
        self.counts['acknowledged'] += 1

    def look(self, cell):
        """The cell, after its mark is noted as read."""
        tag, count = cells.split_mark(cell.mark)
        self.reads.setdefault(cells.number(cell._p_oid), tag)
        return cell

    def change(self, cell):
        self.changed[cell._p_oid] = self.look(cell)
        return cell

    def new(self, links):
        cell = Cell(self.tag, links)
        cell.pad = 'x' * self.random.choice([0, 20, 200, 2000])
        return cell

    def count(self):
        self.look(self.random.choice(self.cells))
        for cell in self.random.sample(list(self.cells), self.random.choice([1, 1, 2])):
            self.change(cell)
        return True

    def grow(self):
        """A new cell on a shelf, and below it a new one; the last one there falls off, and at times what it held lives."""
        shelf = self.change(self.random.choice(self.shelves))
        below = [self.new([]), self.random.choice(self.cells)]
        if len(shelf.links) >= SHELF_HOLDS and self.random.random() < 0.5:
            below += self.look(shelf.links[-1]).links[:1]
        shelf.links = [self.new(below)] + shelf.links[:SHELF_HOLDS - 1]
        return True

    def carry(self):
        """A cell is taken off a shelf in one transaction, and put on another in the next: a pack may come between."""
        shelf = self.change(self.random.choice(self.shelves))
        if self.hand is None:
            if not shelf.links:
                return False
            self.hand = self.look(shelf.links[-1])
            shelf.links = shelf.links[:-1]
        else:
            cell, self.hand = self.look(self.hand), None
            shelf.links = [cell] + [other for other in shelf.links if other is not cell][:SHELF_HOLDS - 1]
        return True

    def look_around(self):
        self.counts['looks'] += 1
        for cell in list(self.cells) + list(self.shelves):
            for inner in self.look(cell).links:
                for deep in self.look(inner).links:
                    self.look(deep)
        return False

    def waver(self):
        self.counts['dropped'] += 1
        self.change(self.random.choice(self.cells)).pad = 'never mind'
        return False


def parse_node(text):
    name, address = text.split('=')
    host, port = address.rsplit(':', 1)
    return name, host, int(port)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--nodes', required=True, help='NAME=HOST:PORT, comma-separated, the own one first')
    parser.add_argument('--records', required=True, help='directory of the records')
    parser.add_argument('--number', type=int, required=True, help='of this client, not 0')
    parser.add_argument('--seed', type=int, required=True)
    parser.add_argument('--pace', type=float, default=0.0, help='mean pause between transactions, in seconds')
    parser.add_argument('--stay', action='store_true', help='only ever use the first node')
    parser.add_argument('--packs', action='store_true', help='pack now and then')
    options = parser.parse_args()
    stop = threading.Event()
    client = Client(options, stop)
    errors = []

    def work():
        try:
            client.run()
        except Exception:
            errors.append(traceback.format_exc())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    sys.stdin.read()
    stop.set()
    thread.join()
    print(json.dumps(dict(client.counts, errors=errors)))


if __name__ == '__main__':
    main()
