"""Stock clients in contention: each transaction reads some shared objects, counts one up, and commits.

Each client is a process. Its objects are drawn anew for every transaction, from root['contend'], a list of counters. After a
conflict it goes on with the next transaction, as stock Durus leaves it. `--workload`: `own`, one's own counter is read
and written; `others`, one's own is written and others' are read; `hot`, whatever is drawn is read and written.
Prints as one line of JSON how many transactions were committed, how many were not, and where that showed: `read`, at a load,
`told`, by the client itself when it was told what had changed, or `refused`, by the server. In the end each counter must
have counted what was committed, or that is an error.
"""
import argparse
import json
import multiprocessing
import random
import time

from durus.error import ReadConflictError, WriteConflictError
from durus.persistent import Persistent
from durus.persistent_list import PersistentList

import common


class Counter(Persistent):

    def __init__(self):
        self.count = 0


def make(port, count):
    connection = common.connect(port)
    connection.get_root()['contend'] = PersistentList([Counter() for _ in range(count)])
    connection.commit()
    common.close(connection)


def transact(connection, workload, nth, draw, reads):
    """What the transaction does before its commit."""
    counters = connection.get_root()['contend']
    drawn = [draw.randrange(len(counters)) for _ in range(reads)]
    if workload == 'own':
        drawn = []
    for place in drawn:
        counters[place].count
    own = drawn[0] if workload == 'hot' else nth
    counters[own].count += 1
    return own


def client(nth, port, workload, reads, seconds, answers):
    counts = {'committed': 0, 'read': 0, 'told': 0, 'refused': 0}
    counted = {}
    draw = random.Random(nth)
    connection = common.connect(port)
    until = time.monotonic() + seconds
    begun = time.monotonic()
    while time.monotonic() < until:
        try:
            place = transact(connection, workload, nth, draw, reads)
            connection.commit()
            counts['committed'] += 1
            counted[place] = counted.get(place, 0) + 1
        except ReadConflictError:
            counts['read'] += 1
            connection.abort()
        except WriteConflictError as error:
            # The client's own error names what it had read; the server's answer names nothing.
            counts['told' if error.oids else 'refused'] += 1
            connection.abort()
    answers.put((counts, counted, time.monotonic() - begun))
    common.close(connection)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--ports', required=True, help='comma-separated; the clients take turns')
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--workload', choices=['own', 'others', 'hot'], required=True)
    parser.add_argument('--objects', type=int, default=64)
    parser.add_argument('--reads', type=int, default=3)
    parser.add_argument('--seconds', type=float, default=4)
    options = parser.parse_args()
    ports = [int(port) for port in options.ports.split(',')]
    make(ports[0], options.objects)
    answers = multiprocessing.Queue()
    clients = []
    for nth in range(options.clients):
        words = (nth, ports[nth % len(ports)], options.workload, options.reads, options.seconds, answers)
        clients.append(multiprocessing.Process(target=client, args=words))
        clients[-1].start()
    heard = [answers.get() for _ in clients]
    for process in clients:
        process.join()
    connection = common.connect(ports[0])
    found = [counter.count for counter in connection.get_root()['contend']]
    common.close(connection)
    expected = [sum(counted.get(place, 0) for _, counted, _ in heard) for place in range(len(found))]
    assert found == expected, 'committed %s, found %s' % (expected, found)
    total = {key: sum(counts[key] for counts, _, _ in heard) for key in heard[0][0]}
    total['seconds'] = max(seconds for _, _, seconds in heard)
    total['least'] = min(counts['committed'] for counts, _, _ in heard)
    print(json.dumps(total))


if __name__ == '__main__':
    main()
