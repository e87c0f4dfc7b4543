/* The limit of receiving: a bare C receiver that checks nothing, decodes nothing and never flushes.
 *
 * It accepts every presentation context in its first transfer syntax, writes the bytes of each data set into one file,
 * answers 0x0000 and forks for each association, as `storescp --fork` does. Usage: receive_sink PORT FOLDER
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static uint8_t pdu[1 << 20], answer[1 << 16], command[1 << 16];
static int connection;

static int take(uint8_t *into, size_t wanted) {
    static const int one = 1;
    for (size_t got = 0; got < wanted;) {
        ssize_t n = recv(connection, into + got, wanted - got, 0);
        if (n <= 0) return 0;
        got += (size_t)n;
        setsockopt(connection, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    }
    return 1;
}

static uint32_t big(const uint8_t *at) { return (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]; }
static uint32_t big16(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }
static uint32_t little(const uint8_t *at) { return (uint32_t)at[3] << 24 | at[2] << 16 | at[1] << 8 | at[0]; }
static void put_big(uint8_t *at, uint32_t v) { at[0] = v >> 24; at[1] = v >> 16; at[2] = v >> 8; at[3] = v; }
static void put_little(uint8_t *at, uint32_t v) { at[0] = v; at[1] = v >> 8; at[2] = v >> 16; at[3] = v >> 24; }

static void say(uint8_t type, size_t length) {
    answer[0] = type, answer[1] = 0;
    put_big(answer + 2, (uint32_t)length);
    if (write(connection, answer, 6 + length) < 0) _exit(1);
}

static size_t item(uint8_t *at, uint8_t type, const uint8_t *value, size_t length) {
    at[0] = type, at[1] = 0, at[2] = length >> 8, at[3] = length & 255;
    memmove(at + 4, value, length);
    return 4 + length;
}

static void accept_association(uint32_t length) { /* PS3.8 9.3.3 */
    size_t out = 6 + 68;
    memcpy(answer + 6, pdu, 68);
    out += item(answer + out, 0x10, (const uint8_t *)"1.2.840.10008.3.1.1.1", 21);
    for (uint32_t at = 68; at + 4 <= length; at += 4 + big16(pdu + at + 2)) {
        if (pdu[at] != 0x20) continue;
        uint32_t end = at + 4 + big16(pdu + at + 2);
        for (uint32_t sub = at + 8; sub < end; sub += 4 + big16(pdu + sub + 2)) {
            if (pdu[sub] != 0x40) continue;
            uint8_t *start = answer + out;
            size_t size = 4 + item(start + 8, 0x40, pdu + sub + 4, big16(pdu + sub + 2));
            start[0] = 0x21, start[1] = 0, start[2] = size >> 8, start[3] = size & 255;
            start[4] = pdu[at + 4], start[5] = start[6] = start[7] = 0;
            out += 4 + size;
            break;
        }
    }
    uint8_t user[8 + 4 + 20] = {0x51, 0, 0, 4, 0, 2, 0, 0}; /* maximum length: 131072 */
    size_t size = 8 + item(user + 8, 0x52, (const uint8_t *)"2.25.1", 6);
    out += item(answer + out, 0x50, user, size);
    say(0x02, out - 6);
}

static uint8_t *element(uint8_t *out, uint16_t number, const void *value, uint32_t length) {
    put_little(out, (uint32_t)number << 16);
    put_little(out + 4, length);
    memcpy(out + 8, value, length);
    return out + 8 + length;
}

static uint8_t *copied(uint8_t *out, uint16_t from, uint16_t to, size_t length) {
    for (size_t i = 0; i + 8 <= length; i += 8 + little(command + i + 4))
        if ((command[i + 2] | command[i + 3] << 8) == from)
            return element(out, to, command + i + 8, little(command + i + 4));
    return out;
}

static void answer_store(uint8_t context, size_t length) { /* PS3.7 9.3.1.2 */
    uint8_t *at = answer + 12 + 12, *end = at;
    end = copied(end, 0x0002, 0x0002, length);
    end = element(end, 0x0100, "\x01\x80", 2);
    end = copied(end, 0x0110, 0x0120, length);
    end = element(end, 0x0800, "\x01\x01", 2);
    end = element(end, 0x0900, "\0\0", 2);
    end = copied(end, 0x1000, 0x1000, length);
    uint8_t size[4];
    put_little(size, (uint32_t)(end - at));
    element(answer + 12, 0, size, 4);
    put_big(answer + 6, (uint32_t)(end - answer - 10));
    answer[10] = context, answer[11] = 3;
    say(0x04, (size_t)(end - answer - 6));
}

static void serve(const char *folder) {
    char name[512];
    size_t commanded = 0;
    int file = -1, number = 0;
    for (uint8_t head[6]; take(head, 6);) {
        uint32_t length = big(head + 2);
        if (length > sizeof pdu || !take(pdu, length)) return;
        if (head[0] == 0x01) accept_association(length);
        if (head[0] == 0x05) memset(answer + 6, 0, 4), say(0x06, 4);
        if (head[0] != 0x04) continue;
        for (uint32_t at = 0; at < length; at += 4 + big(pdu + at)) {
            uint32_t size = big(pdu + at) - 2;
            uint8_t context = pdu[at + 4], control = pdu[at + 5], *value = pdu + at + 6;
            if (control & 1) {
                memcpy(command + commanded, value, size), commanded += size;
                continue;
            }
            if (file < 0) {
                snprintf(name, sizeof name, "%s/%d-%d.dcm", folder, getpid(), number++);
                file = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0640);
            }
            if (write(file, value, size) < 0) return;
            if (control & 2) {
                close(file), file = -1;
                answer_store(context, commanded), commanded = 0;
            }
        }
    }
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) return 1;
    for (;;) {
        connection = accept(listener, NULL, NULL);
        while (waitpid(-1, NULL, WNOHANG) > 0) {} /* so that their CPU time is counted with ours */
        if (connection < 0) continue;
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (fork() == 0) {
            close(listener);
            serve(arguments[2]);
            _exit(0);
        }
        close(connection);
    }
}
