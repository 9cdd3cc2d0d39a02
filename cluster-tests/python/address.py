"""A stock client at any address: adds one to root['n'] in a commit of its own, and prints what it is then.

    address.py HOST:PORT | PATH | @NAME
"""
import json
import sys

from durus.client_storage import ClientStorage
from durus.connection import Connection


def address(text):
    if text[0] in '/@':
        return text
    host, port = text.rsplit(':', 1)
    return host.strip('[]'), int(port)


def main():
    connection = Connection(ClientStorage(address=address(sys.argv[1])))
    root = connection.get_root()
    root['n'] = root.get('n', 0) + 1
    connection.commit()
    print(json.dumps({'n': root['n']}))


if __name__ == '__main__':
    main()
