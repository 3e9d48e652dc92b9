"""What the tests run inside containers, where there is nothing but Python: each prints JSON."""

ASK = """
import http.client, json, sys, time
found = []
for _ in range({times}):
    connection = http.client.HTTPConnection("{host}", 8080, timeout=2)
    try:
        connection.request("GET", "{path}")
        answer = connection.getresponse()
        found.append([answer.status, answer.read().decode().strip()])
    except OSError as e:
        found.append([0, str(e)])
    connection.close()
print(json.dumps(found))
"""
DIAL = """
import json, socket
try:
    with socket.create_connection(("{host}", 5432), 0.7) as s:
        s.sendall(b"select 1\\n")
        print(json.dumps(s.recv(64).decode()))
except OSError as e:
    print(json.dumps(f"no: {{e}}"))
"""
LOAD = """
import collections, http.client, json, time
seen = collections.Counter()
end = time.monotonic() + {seconds}
connection = http.client.HTTPConnection("{host}", 8080, timeout=2)
while time.monotonic() < end:
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        seen[str(answer.status) + " " + answer.read().decode().strip()] += 1
    except (OSError, http.client.HTTPException) as e:
        seen[type(e).__name__] += 1
        connection.close()
print(json.dumps(seen))
"""
