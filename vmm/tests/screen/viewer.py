"""A viewer of RFB that shares nothing with the product: what it decodes is compared with what the screen has (main.rs).

    viewer.py SOCKET ENCODING...

Encodings are numbers. For each line on standard input it asks for an update, "new" for a whole one and "more" for what has changed, and
writes what it shows as a binary pixmap (PPM): a line with its length, then the bytes. Needs nothing but Python; JPEG needs Pillow.
"""

import io
import socket
import struct
import sys
import zlib

RAW, COPY_RECT, TIGHT, ZRLE = 0, 1, 7, 16
LAST_RECT, EXTENDED_DESKTOP_SIZE, CURSOR = -224, -308, -239


class Viewer:
    def __init__(self, path, encodings):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        assert self.read(12) == b"RFB 003.008\n"
        self.socket.sendall(b"RFB 003.008\n")
        types = self.read(self.read(1)[0])
        assert 1 in types
        self.socket.sendall(b"\x01")
        assert self.read(4) == bytes(4)
        self.socket.sendall(b"\x01")
        self.width, self.height = struct.unpack(">HH", self.read(4))
        self.read(16)
        self.read(struct.unpack(">I", self.read(4))[0])
        # 32 bits, big-endian, blue highest: not the screen's own.
        pixels = struct.pack(">BBBBHHHBBBxxx", 32, 24, 1, 1, 255, 255, 255, 0, 8, 16)
        self.socket.sendall(b"\0\0\0\0" + pixels)
        self.socket.sendall(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))
        self.rows = [bytearray(3 * self.width) for _ in range(self.height)]
        self.zrle = zlib.decompressobj()
        self.tight = [zlib.decompressobj() for _ in range(4)]

    def read(self, count):
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError("the server has hung up")
            data += piece
        return bytes(data)

    def ask(self, incremental):
        self.socket.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))
        while not self.update():
            pass

    def update(self):
        """Reads an update; whether it drew something."""
        kind, count = struct.unpack(">BxH", self.read(4))
        assert kind == 0, f"message {kind}"
        drew = False
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.read(12))
            if encoding == LAST_RECT:
                break
            if encoding == EXTENDED_DESKTOP_SIZE:
                self.read(16 * self.read(4)[0])
                continue
            if encoding == CURSOR:
                self.read(width * height * 4 + (width + 7) // 8 * height)
                continue
            drew = True
            if encoding == COPY_RECT:
                left, top = struct.unpack(">HH", self.read(4))
                moved = [self.rows[top + row][3 * left : 3 * (left + width)] for row in range(height)]
                for row in range(height):
                    self.rows[y + row][3 * x : 3 * (x + width)] = moved[row]
            elif encoding == RAW:
                self.put(x, y, width, height, self.pixels(self.read(4 * width * height)))
            elif encoding == ZRLE:
                self.put_zrle(x, y, width, height)
            elif encoding == TIGHT:
                self.put(x, y, width, height, self.tight_rect(width, height))
            else:
                raise ValueError(f"encoding {encoding} was not asked for")
        return drew

    @staticmethod
    def pixels(data):
        """Nothing, blue, green, red to red, green, blue."""
        out = bytearray(len(data) // 4 * 3)
        out[0::3], out[1::3], out[2::3] = data[3::4], data[2::4], data[1::4]
        return out

    def put(self, x, y, width, height, rgb):
        assert len(rgb) == 3 * width * height
        for row in range(height):
            self.rows[y + row][3 * x : 3 * (x + width)] = rgb[3 * width * row : 3 * width * (row + 1)]

    def put_zrle(self, x, y, width, height):
        data = io.BytesIO(self.zrle.decompress(self.read(struct.unpack(">I", self.read(4))[0])))
        for top in range(y, y + height, 64):
            for left in range(x, x + width, 64):
                columns, rows = min(64, x + width - left), min(64, y + height - top)
                self.put(left, top, columns, rows, self.zrle_tile(data, columns, rows))
        assert not data.read(1)

    @staticmethod
    def zrle_tile(data, width, height):
        def colour():
            # Blue, green, red: the byte without meaning is left out.
            return data.read(3)[::-1]

        kind, count = data.read(1)[0], width * height
        if kind == 0:
            return b"".join(colour() for _ in range(count))
        if kind == 1:
            return colour() * count
        if kind <= 16:
            palette = [colour() for _ in range(kind)]
            bits = 1 if kind == 2 else 2 if kind <= 4 else 4
            out = bytearray()
            for _ in range(height):
                row = data.read((width * bits + 7) // 8)
                for column in range(width):
                    place = column * bits
                    out += palette[row[place // 8] >> 8 - bits - place % 8 & (1 << bits) - 1]
            return out
        assert kind >= 128 and kind != 129, f"tile {kind}"
        palette = [colour() for _ in range(kind - 128)]
        out = bytearray()
        while len(out) < 3 * count:
            if palette:
                index = data.read(1)[0]
                pixel, is_run = palette[index & 127], index & 128
            else:
                pixel, is_run = colour(), True
            length = 1
            while is_run:
                more = data.read(1)[0]
                length += more
                is_run = more == 255
            out += pixel * length
        return out

    def tight_length(self):
        length = 0
        for shift in 0, 7, 14:
            byte = self.read(1)[0]
            length |= (byte & 127 if shift < 14 else byte) << shift
            if not byte & 128:
                break
        return length

    def tight_data(self, stream, length):
        if length < 12:
            return self.read(length)
        data = self.tight[stream].decompress(self.read(self.tight_length()))
        assert len(data) == length
        return data

    def tight_rect(self, width, height):
        control = self.read(1)[0]
        for stream in range(4):
            if control >> stream & 1:
                self.tight[stream] = zlib.decompressobj()
        kind, stream = control >> 4, control >> 4 & 3
        if kind == 8:
            return self.read(3) * (width * height)
        if kind == 9:
            from PIL import Image

            picture = Image.open(io.BytesIO(self.read(self.tight_length())))
            assert picture.size == (width, height)
            return picture.convert("RGB").tobytes()
        assert kind < 8, f"control {control:#x}"
        if not kind & 4:
            return self.tight_data(stream, 3 * width * height)
        assert self.read(1)[0] == 1, "a palette"
        count = self.read(1)[0] + 1
        palette = [self.read(3) for _ in range(count)]
        if count > 2:
            return b"".join(palette[index] for index in self.tight_data(stream, width * height))
        row_bytes = (width + 7) // 8
        data = self.tight_data(stream, row_bytes * height)
        bits = (data[row * row_bytes + column // 8] >> 7 - column % 8 & 1 for row in range(height) for column in range(width))
        return b"".join(palette[bit] for bit in bits)


def main():
    viewer = Viewer(sys.argv[1], [int(encoding) for encoding in sys.argv[2:]])
    for line in sys.stdin:
        viewer.ask(line.strip() == "more")
        picture = b"P6\n%d %d\n255\n" % (viewer.width, viewer.height) + b"".join(viewer.rows)
        sys.stdout.buffer.write(b"%d\n" % len(picture) + picture)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
