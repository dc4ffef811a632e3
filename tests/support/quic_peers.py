"""QUIC with HTTP/3, by aioquic: clients that move, and a server that names itself in no id.

    certificate CERTIFICATE KEY                       writes both
    serve ADDRESS PORT NUMBER CERTIFICATE KEY         answers each question with its number; says "ready" first
    clients ADDRESS PORT BASE COUNT PATIENCE KIND     see below; PATIENCE is for questions after the move

Clients connect from the addresses BASE.1.N, ask, and say "answered". "restless" ones go on asking. A line says how
they move: "stay", "port" (of the same address), "address" (to BASE.2.N), "id" (to that, with another connection id). Then
they ask once more, and what became of all questions is printed as JSON.
"""

import asyncio
import datetime
import json
import socket
import ssl
import sys

from aioquic.asyncio import serve
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated

NAME = "moved.flowgate.test"

# Seconds; longer than any test.
IDLE = 600.0

# For what has to come.
PATIENCE = 60.0


def write_certificate(certificate, key):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=30))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    signed = builder.sign(private, hashes.SHA256())
    with open(certificate, "wb") as file:
        file.write(signed.public_bytes(serialization.Encoding.PEM))
    with open(key, "wb") as file:
        encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
        file.write(private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password))


class Server(QuicConnectionProtocol):
    number = b""
    http = None

    def quic_event_received(self, event):
        if self.http is None:
            self.http = H3Connection(self._quic)
        for happened in self.http.handle_event(event):
            if isinstance(happened, HeadersReceived):
                self.http.send_headers(happened.stream_id, [(b":status", b"200")])
                self.http.send_data(happened.stream_id, self.number, end_stream=True)
        self.transmit()


async def run_server(address, port, number, certificate, key):
    options = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN, idle_timeout=IDLE)
    options.load_cert_chain(certificate, key)
    Server.number = number.encode()
    await serve(address, port, configuration=options, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.questions = {}

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            for future, _ in self.questions.values():
                if not future.done():
                    future.set_result(None)
        for happened in self.http.handle_event(event):
            if isinstance(happened, DataReceived) and happened.stream_id in self.questions:
                future, body = self.questions[happened.stream_id]
                body.extend(happened.data)
                if happened.stream_ended and not future.done():
                    future.set_result(body.decode())

    async def ask(self, patience):
        """What the server says; None where it says nothing."""
        stream = self._quic.get_next_available_stream_id()
        future = asyncio.get_running_loop().create_future()
        self.questions[stream] = future, bytearray()
        names = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", NAME.encode()), (b":path", b"/")]
        self.http.send_headers(stream, names, end_stream=True)
        self.transmit()
        try:
            return await asyncio.wait_for(future, patience)
        except asyncio.TimeoutError:
            return None
        finally:
            del self.questions[stream]

    async def move(self, number, base, how):
        if how == "stay":
            return
        former = self._transport
        address = f"{base}.1.{number + 1}" if how == "port" else f"{base}.2.{number + 1}"
        self._transport = await bound(address, Receiver(self))
        # By the former one nothing is heard any more.
        former.close()
        if how == "id":
            self.change_connection_id()


class Receiver(asyncio.DatagramProtocol):
    """Hands on what comes to where a client has moved."""

    def __init__(self, client):
        self.client = client

    def datagram_received(self, data, source):
        self.client.datagram_received(data, source)


async def bound(address, protocol):
    """What sends from an address, from any port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    return (await asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, sock=sock))[0]


async def connected(number, to, base):
    options = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=NAME, idle_timeout=IDLE)
    options.verify_mode = ssl.CERT_NONE
    client = Client(QuicConnection(configuration=options))
    await bound(f"{base}.1.{number + 1}", client)
    client.connect(to)
    await asyncio.wait_for(client.wait_connected(), PATIENCE)
    return client


async def go_on_asking(client, is_over, answers):
    while not is_over.is_set():
        answers.append(await client.ask(PATIENCE))
        await asyncio.sleep(0.05)


async def run_clients(to, base, count, patience, kind):
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    clients = await asyncio.gather(*(connected(number, to, base) for number in range(count)))
    answers = [[await client.ask(PATIENCE)] for client in clients]
    is_over, asking = asyncio.Event(), asyncio.gather()
    if kind == "restless":
        each = zip(clients, answers)
        asking = asyncio.gather(*(go_on_asking(client, is_over, its) for client, its in each))
    print("answered", flush=True)
    how = (await lines.readline()).decode().strip()
    is_over.set()
    await asking
    await asyncio.gather(*(client.move(number, base, how) for number, client in enumerate(clients)))
    last = await asyncio.gather(*(client.ask(patience) for client in clients))
    for its, answer in zip(answers, last):
        its.append(answer)
    result = {
        "servers": sorted({its[0] for its in answers if its[0] is not None}),
        "lost": sum(None in its for its in answers),
        "strayed": sum(len(set(its) - {None}) > 1 for its in answers),
        "answers": sum(len(its) - its.count(None) for its in answers),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "certificate":
        write_certificate(*rest)
    elif what == "serve":
        asyncio.run(run_server(rest[0], int(rest[1]), *rest[2:]))
    else:
        address, port, base, count, patience, kind = rest
        asyncio.run(run_clients((address, int(port)), base, int(count), float(patience), kind))
