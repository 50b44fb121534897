"""A browser, as far as the portal's scenario needs one: logs in, clicks, opens the screen, and prints what came of it as JSON.

usage: portal.py PORT CA NAME PASSWORD POOL
"""
import http.client
import json
import socket
import ssl
import sys
import time

port, authority, name, password, pool = sys.argv[1:]
HOST = f"desk.test:{port}"
tls = ssl.create_default_context(cafile=authority)


def dial():
    return tls.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), 60), server_hostname="desk.test")


def call(method, path, body=None, headers=None):
    connection = http.client.HTTPSConnection("desk.test", int(port))
    connection.sock = dial()
    text = None if body is None else json.dumps(body)
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, text, {"Host": HOST, **kind, **(headers or {})})
    answer = connection.getresponse()
    said = answer.read().decode()
    return answer.status, answer.getheader("set-cookie"), json.loads(said) if said else None


def end(**said):
    print(json.dumps(said))
    sys.exit(0)


status, cookie, session = call("POST", "/v1/log-in", {"name": name, "password": password})
if status != 200:
    end(status=status, error=session["error"])
cookie = cookie.split(";")[0]
known = {"Cookie": cookie, "X-Splice-Csrf": session["csrf"]}

begun = time.monotonic()
while True:
    status, _, connection = call("POST", f"/v1/desktops/{pool}/connect", headers=known)
    if status != 200:
        end(status=status, error=connection["error"])
    if connection["state"] == "ready":
        break
    if time.monotonic() - begun > 180:
        end(status=0, error=f"still {connection}")
    time.sleep(0.2)

stream = dial()
stream.sendall(
    (
        f"GET /v1/screen?ticket={connection['ticket']} HTTP/1.1\r\nHost: {HOST}\r\nOrigin: https://{HOST}\r\nCookie: {cookie}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
)
came = b""
while b"\r\n\r\n" not in came or len(came.split(b"\r\n\r\n", 1)[1]) < 16:
    more = stream.recv(4096)
    if not more:
        break
    came += more
head, frames = came.split(b"\r\n\r\n", 1)
_, _, mine = call("GET", "/v1/desktops", headers=known)
end(status=int(head.split()[1]), rfb=b"RFB 003." in frames, desktops=[one["name"] for one in mine["desktops"]])
