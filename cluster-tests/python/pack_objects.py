"""What becomes of objects across a pack, as clients see it. Runs one case with stock clients against the servers at
--ports (one of them a stock `durus -s`, or the nodes of a cluster: clients are spread over them), and prints what they
saw as one line of JSON. The case is the same for both kinds of server: the test compares the two answers.
"""
import argparse
import json
import time

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import ConflictError, DurusKeyError
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.utils import int8_to_str, str_to_int8

import common

PACK_S = 60
# In a cluster every node has to be heard before a removed oid is free; a stock server is at rest at once.
TOLD_S = 5


def outcome(work):
    """The result, or the name of the exception."""
    try:
        return work()
    except (ConflictError, KeyError) as error:
        return type(error).__name__


class Servers(object):
    """Hands out clients, each at the next server, and packs."""

    def __init__(self, ports):
        self.ports = ports
        self.count = 0

    def storage(self):
        self.count += 1
        return ClientStorage(host=common.HOST, port=self.ports[self.count % len(self.ports)])

    def connect(self):
        return Connection(self.storage())

    def pack(self, gone):
        """Packs, and waits until the object with this oid is gone everywhere; a new client asks for it, so nobody else is
        told of anything by that."""
        storage = self.storage()
        storage.pack()
        storage.close()
        deadline = time.time() + PACK_S
        for port in self.ports:
            storage = ClientStorage(host=common.HOST, port=port)
            while outcome(lambda: storage.load(gone)) != 'DurusKeyError':
                # A loaded client would be a held object; a client that loads only is told of nothing.
                assert time.time() < deadline, 'the pack does not end'
                time.sleep(0.05)
                storage.close()
                storage = ClientStorage(host=common.HOST, port=port)
            storage.close()


def leaf(name):
    made = Persistent()
    made.name = name
    return made


def number(oid):
    return str_to_int8(oid)


def family(servers, *names):
    """A connection that has made root[name] for each name, and a live object with a greater oid than all of them."""
    connection = servers.connect()
    root = connection.get_root()
    for name in names:
        root[name] = leaf(name)
        connection.commit()
    root['last'] = leaf('last')
    connection.commit()
    return connection


def unlink(connection, *names):
    for name in names:
        del connection.get_root()[name]
    connection.commit()


def dead_object_loads(servers):
    """Loads of what a pack removed: by a new client, by one that has a ghost of it, before and after it was told."""
    maker = family(servers, 'ghost', 'held')
    holder = servers.connect()
    ghost, held = holder.get_root()['ghost'], holder.get_root()['held']
    held.name
    assert ghost._p_is_ghost() and not held._p_is_ghost()
    unlink(maker, 'ghost', 'held')
    servers.pack(ghost._p_oid)
    new = servers.connect()
    return {
        'a new client gets it': outcome(lambda: new.get(ghost._p_oid)),
        'its storage loads it': outcome(lambda: new.get_storage().load(ghost._p_oid)),
        'what was loaded before is still there': held.name,
        'the ghost is loaded': outcome(lambda: ghost.name),
        'it is told': outcome(holder.abort),
        'the ghost is loaded then': outcome(lambda: ghost.name),
        'what was loaded before is a ghost': held._p_is_ghost(),
        'and is loaded then': outcome(lambda: held.name),
        'the rest is there': sorted(holder.get_root().keys()),
    }


def invalidations(servers):
    """Every client is told once of every object that is gone, whether it had it or not."""
    names = ['gone%d' % at for at in range(5)]
    maker = family(servers, *names)
    gone = sorted(number(maker.get_root()[name]._p_oid) for name in names)
    clients = [servers.storage() for _ in range(3)]
    unlink(maker, *names)
    # They are told of the change of the root before.
    for client in clients:
        client.sync()
    servers.pack(int8_to_str(gone[0]))
    told = [sorted(number(oid) for oid in client.sync()) for client in clients]
    again = [client.sync() for client in clients]
    return {
        'all are told the same': told[0] == told[1] == told[2],
        'of all that is gone': told[0] == gone,
        'and not again': again == [[], [], []],
        'loads of a told client': outcome(lambda: clients[0].load(int8_to_str(gone[0]))),
    }


def invalidations_above_the_highest(servers):
    """The same of objects whose oids are greater than those of all that is left."""
    maker = family(servers)
    root = maker.get_root()
    root['a'], root['b'] = leaf('a'), leaf('b')
    maker.commit()
    gone = sorted(number(root[name]._p_oid) for name in 'ab')
    holder = servers.connect()
    held = holder.get_root()['b']
    held.name
    unlink(maker, 'a', 'b')
    holder.abort()
    servers.pack(int8_to_str(gone[0]))
    told = [number(oid) for oid in holder.get_storage().sync()]
    return {'told': [oid in told for oid in gone]}


def holes(servers):
    """The oids that are free after a pack, in the order in which they are given out."""
    names = ['x%d' % at for at in range(6)]
    maker = family(servers, *names)
    gone = [number(maker.get_root()[name]._p_oid) for name in names]
    unlink(maker, *names)
    maker.get_storage().close()
    servers.pack(int8_to_str(gone[0]))
    client = servers.storage()
    # A stock server that has told nobody yet throws holes away when it is asked for oids.
    client.sync()
    first = first_free(client, gone)
    taken = [first] + [number(client.new_oid()) for _ in range(len(gone) - 1)]
    return {'given': [oid in gone for oid in taken], 'descending': taken == sorted(taken)[::-1]}


def first_free(client, gone):
    """The first of these oids that is given out; None if none is. Takes one oid after the other."""
    client.oid_pool_size = 1
    deadline = time.time() + TOLD_S
    while time.time() < deadline:
        oid = number(client.new_oid())
        if oid in gone:
            return oid
        time.sleep(0.02)
    return None


def no_reuse_before_told(servers):
    """No oid of what is gone is given out while somebody has not been told."""
    names = ['x%d' % at for at in range(4)]
    maker = family(servers, *names)
    gone = [number(maker.get_root()[name]._p_oid) for name in names]
    late = servers.connect()
    held = late.get_root()['x0']
    held.name
    unlink(maker, *names)
    servers.pack(int8_to_str(gone[0]))
    maker.abort()
    taker = servers.storage()
    taker.oid_pool_size = 100
    early = [number(taker.new_oid()) for _ in range(100)]
    reused_early = sorted(set(early) & set(gone))
    late.abort()
    maker.abort()
    taker.sync()
    other = servers.storage()
    return {'given out before': reused_early, 'given out after': first_free(other, gone) is not None}


def resurrection_of_a_read_object(servers):
    """A client has read an object, which is unlinked and packed away meanwhile; it links it again."""
    maker = family(servers, 'x')
    holder = servers.connect()
    root = holder.get_root()
    held = root['x']
    holder.abort()
    held.name
    root['other'] = leaf('other')
    unlink(maker, 'x')
    holder.abort()
    held.name
    servers.pack(held._p_oid)
    root['again'] = held
    told = outcome(holder.commit)
    outcome(holder.abort)
    return dict(after_a_resurrection(servers, held), commit=told, held=outcome(lambda: held.name))


def resurrection_of_an_unread_object(servers):
    """The same by a client that has not read the object in this transaction: it only has it."""
    maker = family(servers, 'x')
    holder = servers.connect()
    root = holder.get_root()
    held = root['x']
    held.name
    unlink(maker, 'x')
    holder.abort()
    servers.pack(held._p_oid)
    root['again'] = held
    told = outcome(holder.commit)
    outcome(holder.abort)
    return dict(after_a_resurrection(servers, held), commit=told)


def resurrection_after_being_told(servers):
    """The same by a client that has synced since the pack, and could know."""
    maker = family(servers, 'x')
    holder = servers.connect()
    root = holder.get_root()
    held = root['x']
    held.name
    unlink(maker, 'x')
    servers.pack(held._p_oid)
    holder.abort()
    root['again'] = held
    told = outcome(holder.commit)
    outcome(holder.abort)
    return dict(after_a_resurrection(servers, held), commit=told)


def after_a_resurrection(servers, held):
    """Is there a reference to nothing?"""
    root = servers.connect().get_root()
    linked = 'again' in root.keys()
    reads = outcome(lambda: root['again'].name) if linked else 'not linked'
    return {'linked': linked, 'another client reads it': reads}


def change_of_a_dead_object(servers):
    """A client has changed an object that is unlinked and packed away before it commits."""
    maker = family(servers, 'x')
    holder = servers.connect()
    held = holder.get_root()['x']
    holder.abort()
    held.name = 'changed'
    unlink(maker, 'x')
    servers.pack(held._p_oid)
    told = outcome(holder.commit)
    outcome(holder.abort)
    return {
        'commit': told,
        'it is gone': outcome(lambda: servers.storage().load(held._p_oid)),
        'and so for its holder': outcome(lambda: held.name),
    }


def reused_oid(servers):
    """A client that was told still has the ghost of an object whose oid is another object's by now."""
    maker = family(servers, 'x', 'y')
    holder = servers.connect()
    held = holder.get_root()['x']
    held.name
    gone = [number(maker.get_root()[name]._p_oid) for name in 'xy']
    unlink(maker, 'x', 'y')
    servers.pack(held._p_oid)
    holder.abort()
    maker.abort()
    taker = Connection(servers.storage())
    taker.get_storage().oid_pool_size = 1
    deadline = time.time() + TOLD_S
    made = []
    root = taker.get_root()
    root['new'] = PersistentDict()
    # All the new ones are kept, until the held one's oid is among them.
    while not any(number(new._p_oid) == gone[0] for new in made):
        assert time.time() < deadline, 'the oid is not given out again'
        new = leaf('new%d' % len(made))
        root['new'][str(len(made))] = new
        taker.commit()
        made.append(new)
        time.sleep(0.01)
    before = outcome(lambda: held.name)
    holder.abort()
    after = outcome(lambda: held.name)
    return {
        'what its holder reads': before[:3],
        'and after a sync': after[:3],
        'the new one is what it is': made[-1].name[:3],
        'for others too': servers.connect().get_root()['new']['0'].name,
    }


CASES = [dead_object_loads, invalidations, invalidations_above_the_highest, holes, no_reuse_before_told,
         resurrection_of_a_read_object, resurrection_of_an_unread_object, resurrection_after_being_told,
         change_of_a_dead_object, reused_oid]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('case', choices=[case.__name__ for case in CASES])
    parser.add_argument('--ports', required=True)
    options = parser.parse_args()
    servers = Servers([int(port) for port in options.ports.split(',')])
    case = [case for case in CASES if case.__name__ == options.case][0]
    print(json.dumps(case(servers)))


if __name__ == '__main__':
    main()
