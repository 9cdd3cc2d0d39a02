"""What stock clients and stock files come to, for the tests of stock's known defects.

    defects.py missing PORT      a bulk load with a missing object in it, and then, at its leisure, a load by the same client
    defects.py changed PORT      the same with an object that another client has changed
    defects.py torn FILE         a file cut inside its last record, opened by stock Durus, and opened again after a commit
    defects.py flipped FILE      a file with a flipped bit, read by stock Durus
    defects.py between FILE      a pack of FILE that ends between its two renames, and what the next start finds
    defects.py greeting FILE     root['greeting'] of FILE, read by stock Durus

Prints one line of JSON.
"""
import json
import os
import sys
import time

import durus.serialize
from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import DurusKeyError
from durus.file_storage import FileStorage
from durus.persistent import Persistent
from durus.utils import int8_to_str, str_to_int8


def made(path):
    """A file whose last transaction is one object, and not the root."""
    connection = Connection(FileStorage(path))
    root = connection.get_root()
    root['greeting'] = 'hello'
    root['child'] = Persistent()
    connection.commit()
    root['child'].text = 'x' * 100
    connection.commit()
    connection.get_storage().close()


def outcome(attempt):
    """What it gives, or the name of the exception."""
    try:
        return attempt()
    except Exception as error:
        return type(error).__name__


def read(path, key):
    storage = FileStorage(path, readonly=True)
    try:
        return Connection(storage).get_root().get(key)
    finally:
        storage.close()


def missing(port):
    return bulk(port, lambda root: int8_to_str(1 << 40), told=False)


def changed(port):
    def change(root):
        other = Connection(ClientStorage(port=port))
        other.get_root()['two'].text = 'changed'
        other.commit()
        return root['two']._p_oid
    return bulk(port, change, told=True)


def bulk(port, spoil, told):
    storage = ClientStorage(port=port)
    # Out of step, a stock client may wait for gigabytes.
    storage.s.settimeout(5)
    connection = Connection(storage)
    root = connection.get_root()
    root['one'], root['two'] = Persistent(), Persistent()
    connection.commit()
    one, spoiled = root['one']._p_oid, spoil(root)
    wanted = storage.load(one)
    raised = outcome(lambda: list(storage.bulk_load([one, spoiled, root._p_oid])))
    time.sleep(0.3)
    after = outcome(lambda: storage.load(one))
    synced = outcome(lambda: [str_to_int8(oid) for oid in storage.sync()])
    news = [str_to_int8(spoiled)] if told else []
    return {'raised': raised, 'in_step': after == wanted and synced == news}


def torn(path):
    made(path)
    os.truncate(path, os.path.getsize(path) - 3)

    def commit():
        storage = FileStorage(path)
        connection = Connection(storage)
        connection.get_root()['more'] = 1
        connection.commit()
        storage.close()
        return 'fine'
    return {'first': outcome(commit), 'then': outcome(commit)}


def flipped(path):
    durus.serialize.WRITE_COMPRESSED_STATE_PICKLES = False
    made(path)
    with open(path, 'r+b') as file:
        at = file.read().rindex(b'hello')
        file.seek(at)
        file.write(b'hellp')
    return {'greeting': outcome(lambda: read(path, 'greeting'))}


def between(path):
    made(path)
    child = os.fork()
    if child == 0:
        rename, done = os.rename, []

        def once(old, new):
            if done:
                os._exit(9)
            done.append(old)
            rename(old, new)
        os.rename = once
        import durus.file_storage
        for module in (durus.file_storage, sys.modules['durus.shelf'], sys.modules['durus.file']):
            if hasattr(module, 'rename'):
                module.rename = once
        connection = Connection(FileStorage(path))
        connection.pack()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    there = os.path.exists(path)
    storage = FileStorage(path)
    greeting = Connection(storage).get_root().get('greeting')
    storage.close()
    return {'ended': os.WEXITSTATUS(status), 'there': there, 'greeting': greeting}


def main():
    verb, argument = sys.argv[1:]
    talk, sys.stdout = sys.stdout, sys.stderr
    if verb in ('missing', 'changed'):
        said = {'missing': missing, 'changed': changed}[verb](int(argument))
    elif verb == 'greeting':
        said = {'greeting': outcome(lambda: read(argument, 'greeting'))}
    else:
        said = {'torn': torn, 'flipped': flipped, 'between': between}[verb](argument)
    sys.stdout = talk
    print(json.dumps(said))


if __name__ == '__main__':
    main()
