/* Stores what a push sends, and hashes what then lies in the file.
 *
 *   push_receiver NAME CHUNK FIRST STOP LAST
 *
 * takes the chunks FIRST to before STOP of NAME from standard input: CHUNK bytes each, the last of them LAST bytes. Each
 * goes to its place in NAME, is read again from there, and its line "NAME NUMBER SHA256" is printed. What was stored is
 * sent on to the storage at once. At a fault its words and a line "failed" are printed, and the exit code is 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#define BLOCK (256 * 1024) /* stays in a processor's cache */
#define MOST_HASHERS 4

/* --- SHA-256 (FIPS 180-4) ---------------------------------------------------------------------------------------- */

static const uint32_t K[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

typedef void (*compressor)(uint32_t state[8], const uint8_t *data, size_t blocks);

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void compress_plain(uint32_t state[8], const uint8_t *data, size_t blocks) {
  for (; blocks; blocks--, data += 64) {
    uint32_t w[64], s[8];
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 16; i++) {
      memcpy(&w[i], data + 4 * i, 4);
      w[i] = __builtin_bswap32(w[i]);
    }
    for (int i = 16; i < 64; i++) {
      uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    for (int i = 0; i < 64; i++) {
      uint32_t a = s[0], e = s[4];
      uint32_t one = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + K[i] + w[i];
      uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
      memmove(s + 1, s, 7 * sizeof *s);
      s[4] += one;
      s[0] = one + two;
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
  }
}

#if defined(__x86_64__)
/* The instructions keep the state as ABEF and CDGH. */
__attribute__((target("sha,sse4.1,ssse3"))) static void compress_quick(uint32_t state[8], const uint8_t *data,
                                                                       size_t blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xB1);
  __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1B);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xF0);
  for (; blocks; blocks--, data += 64) {
    __m128i abef_before = abef, cdgh_before = cdgh, w[4];
    for (int i = 0; i < 4; i++) w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)data + i), swap);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      __m128i now = w[i & 3];
      if (i >= 4) {
        __m128i next = w[(i + 1) & 3], last = w[(i + 3) & 3];
        now = _mm_add_epi32(_mm_sha256msg1_epu32(now, next), _mm_alignr_epi8(last, w[(i + 2) & 3], 4));
        now = w[i & 3] = _mm_sha256msg2_epu32(now, last);
      }
      __m128i sum = _mm_add_epi32(now, _mm_load_si128((const __m128i *)(K + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

/* Leaf 7, EBX bit 29 is SHA; leaf 1, ECX bits 9 and 19 are SSSE3 and SSE4.1. */
static int has_instructions(void) {
  uint32_t a, b, c, d;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
  if (a < 7) return 0;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1), "c"(0));
  if (!(c >> 9 & 1) || !(c >> 19 & 1)) return 0;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  return b >> 29 & 1;
}
#elif defined(__aarch64__)
__attribute__((target("sha2"))) static void compress_quick(uint32_t state[8], const uint8_t *data, size_t blocks) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; blocks; blocks--, data += 64) {
    uint32x4_t abcd_before = abcd, efgh_before = efgh, w[4];
    for (int i = 0; i < 4; i++) w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      if (i >= 4)
        w[i & 3] = vsha256su1q_u32(vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]), w[(i + 2) & 3], w[(i + 3) & 3]);
      uint32x4_t sum = vaddq_u32(w[i & 3], vld1q_u32(K + 4 * i)), abcd_now = abcd;
      abcd = vsha256hq_u32(abcd, efgh, sum);
      efgh = vsha256h2q_u32(efgh, abcd_now, sum);
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

/* Bit 6 of the kernel's HWCAP is SHA2. */
static int has_instructions(void) { return getauxval(AT_HWCAP) >> 6 & 1; }
#endif

/* --- the chunks -------------------------------------------------------------------------------------------------- */

static struct {
  const char *name;
  int file;
  uint64_t chunk, first, stop, last;
  compressor compress;
  pthread_mutex_t lock;
  pthread_cond_t more;
  uint64_t stored, taken; /* chunks before these are in the file; are some hasher's */
} run = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static void say(const char *text, size_t size) {
  while (size) {
    ssize_t count = write(STDOUT_FILENO, text, size);
    if (count < 0 && errno != EINTR) _exit(1);
    if (count > 0) text += count, size -= (size_t)count;
  }
}

static void fail(const char *words) {
  char line[512];
  int size = snprintf(line, sizeof line, "%s: %s\nfailed\n", run.name, words);
  say(line, size < (int)sizeof line ? (size_t)size : sizeof line - 1);
  _exit(1);
}

static uint64_t length_of(uint64_t number) { return number + 1 < run.stop ? run.chunk : run.last; }

/* As many as there are, up to size. */
static size_t read_file(uint8_t *to, size_t size, uint64_t offset) {
  size_t done = 0;
  while (done < size) {
    ssize_t count = pread(run.file, to + done, size - done, (off_t)(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(strerror(errno));
    if (!count) fail("it has become shorter");
    done += (size_t)count;
  }
  return done;
}

static void hash_chunk(uint64_t number, uint8_t *buffer) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint64_t offset = number * run.chunk, size = length_of(number), left = size;
  size_t rest = 0;
  while (left) {
    rest = read_file(buffer, left < BLOCK ? (size_t)left : BLOCK, offset);
    offset += rest, left -= rest;
    run.compress(state, buffer, rest / 64);
  }
  /* The end: what is no whole block, a bit, zeros, the length in bits. */
  uint8_t end[128] = {0};
  size_t over = rest % 64, ends = over < 56 ? 64 : 128;
  memcpy(end, buffer + (rest - over), over);
  end[over] = 0x80;
  uint64_t bits = __builtin_bswap64(size * 8);
  memcpy(end + ends - 8, &bits, 8);
  run.compress(state, end, ends / 64);
  char line[512];
  int at = snprintf(line, 400, "%s %llu ", run.name, (unsigned long long)number);
  for (int i = 0; i < 8; i++) at += snprintf(line + at, 9, "%08x", state[i]);
  line[at] = '\n';
  say(line, (size_t)at + 1);
}

static void *hash_chunks(void *buffer) {
  for (;;) {
    pthread_mutex_lock(&run.lock);
    while (run.taken == run.stored && run.taken < run.stop) pthread_cond_wait(&run.more, &run.lock);
    uint64_t number = run.taken;
    if (number < run.stop) run.taken++;
    pthread_mutex_unlock(&run.lock);
    if (number == run.stop) return NULL;
    hash_chunk(number, buffer);
    /* Only a start: whoever wants it on the storage calls fsync. */
    sync_file_range(run.file, (off_t)(number * run.chunk), (off_t)length_of(number), SYNC_FILE_RANGE_WRITE);
  }
}

static void store_chunk(uint64_t number, uint8_t *buffer) {
  uint64_t offset = number * run.chunk, left = length_of(number);
  while (left) {
    ssize_t got = read(STDIN_FILENO, buffer, left < BLOCK ? (size_t)left : BLOCK);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(strerror(errno));
    if (!got) fail("the connection's end");
    for (ssize_t done = 0; done < got;) {
      ssize_t count = pwrite(run.file, buffer + done, (size_t)(got - done), (off_t)offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail(strerror(errno));
      done += count, offset += (uint64_t)count, left -= (uint64_t)count;
    }
  }
}

int main(int count, char **words) {
  if (count != 6) {
    say("usage: push_receiver NAME CHUNK FIRST STOP LAST\n", 48);
    return 2;
  }
  run.name = words[1];
  run.chunk = strtoull(words[2], NULL, 10);
  run.stored = run.taken = run.first = strtoull(words[3], NULL, 10);
  run.stop = strtoull(words[4], NULL, 10);
  run.last = strtoull(words[5], NULL, 10);
  run.compress = has_instructions() ? compress_quick : compress_plain;
  if (getenv("PUSH_RECEIVER_PLAIN")) run.compress = compress_plain; /* to test it where there are instructions */
  run.file = open(run.name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  if (run.file < 0) fail(strerror(errno));
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  int hashers = processors < 1 ? 1 : processors > MOST_HASHERS ? MOST_HASHERS : (int)processors;
  uint8_t *buffers = malloc((size_t)(hashers + 1) * BLOCK);
  pthread_t threads[MOST_HASHERS];
  if (!buffers) fail("no memory");
  for (int i = 0; i < hashers; i++)
    if (pthread_create(&threads[i], NULL, hash_chunks, buffers + (size_t)(i + 1) * BLOCK)) fail("no threads");
  for (uint64_t number = run.first; number < run.stop; number++) {
    store_chunk(number, buffers);
    pthread_mutex_lock(&run.lock);
    run.stored = number + 1;
    pthread_cond_broadcast(&run.more);
    pthread_mutex_unlock(&run.lock);
  }
  for (int i = 0; i < hashers; i++) pthread_join(threads[i], NULL);
  return 0;
}
