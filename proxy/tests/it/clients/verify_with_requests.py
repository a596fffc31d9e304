"""requests, asked whether it accepts what a server shows: HOST PORT CA-FILE."""

import socket
import sys

import requests

host, port, ca = sys.argv[1:]
found = socket.getaddrinfo
socket.getaddrinfo = lambda name, *rest, **more: found("127.0.0.1" if name == host else name, *rest, **more)
session = requests.Session()
session.trust_env = False
session.get(f"https://{host}:{port}/", verify=ca, timeout=20)
