/* SHA-256 (FIPS 180-4) for the programs in this folder, of one message or of two at once.
 *
 * The processor's instructions for it mostly wait for each other's results: two messages take hardly longer than one.
 * An "end" is what follows a message's last whole block: the remaining bytes, a bit, zeros, the length in bits.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

enum { SHA256_BLOCK = 64, SHA256_DIGEST = 32, SHA256_MOST_LANES = 2 };

static const uint32_t SHA256_START[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static const uint32_t SHA256_CONSTANTS[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* Updates the states of one or two messages with this number of blocks of each. */
typedef void (*sha256_compressor)(uint32_t states[][8], const uint8_t *const data[], int lanes, size_t blocks);

static inline uint32_t sha256_rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

static inline void sha256_plain_block(uint32_t state[8], const uint8_t *data) {
    uint32_t w[64], s[8];
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 16; i++) {
        memcpy(&w[i], data + 4 * i, 4);
        w[i] = __builtin_bswap32(w[i]);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (sha256_rotated(a, 7) ^ sha256_rotated(a, 18) ^ a >> 3) + w[i - 7] +
               (sha256_rotated(b, 17) ^ sha256_rotated(b, 19) ^ b >> 10);
    }
    for (int i = 0; i < 64; i++) {
        uint32_t big1 = sha256_rotated(s[4], 6) ^ sha256_rotated(s[4], 11) ^ sha256_rotated(s[4], 25);
        uint32_t big0 = sha256_rotated(s[0], 2) ^ sha256_rotated(s[0], 13) ^ sha256_rotated(s[0], 22);
        uint32_t one = s[7] + big1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + SHA256_CONSTANTS[i] + w[i];
        uint32_t two = big0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
}

static inline void sha256_plain(uint32_t states[][8], const uint8_t *const data[], int lanes, size_t blocks) {
    for (int k = 0; k < lanes; k++)
        for (size_t i = 0; i < blocks; i++) sha256_plain_block(states[k], data[k] + i * SHA256_BLOCK);
}

#if defined(__x86_64__)
#define SHA256_TARGET "sha,sse4.1,ssse3"

/* Leaf 7, EBX bit 29 is SHA; leaf 1, ECX bits 9 and 19 are SSSE3 and SSE4.1. */
static inline int sha256_is_quick(void) {
    uint32_t a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
    if (a < 7) return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1), "c"(0));
    if (!(c >> 9 & 1) || !(c >> 19 & 1)) return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    return b >> 29 & 1;
}

/* The instructions keep a state as ABEF and CDGH. */
__attribute__((target(SHA256_TARGET), always_inline)) static inline void sha256_lanes(
    uint32_t states[][8], const uint8_t *const data[], const int lanes, size_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i abef[SHA256_MOST_LANES], cdgh[SHA256_MOST_LANES];
    for (int k = 0; k < lanes; k++) {
        __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)states[k]), 0xB1);
        __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(states[k] + 4)), 0x1B);
        abef[k] = _mm_alignr_epi8(badc, hgfe, 8), cdgh[k] = _mm_blend_epi16(hgfe, badc, 0xF0);
    }
    for (size_t at = 0; at < blocks * SHA256_BLOCK; at += SHA256_BLOCK) {
        __m128i abef_before[SHA256_MOST_LANES], cdgh_before[SHA256_MOST_LANES], w[SHA256_MOST_LANES][4];
        for (int k = 0; k < lanes; k++) {
            abef_before[k] = abef[k], cdgh_before[k] = cdgh[k];
            for (int i = 0; i < 4; i++)
                w[k][i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data[k] + at) + i), swap);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < lanes; k++) {
                __m128i now = w[k][i & 3];
                if (i >= 4) {
                    __m128i next = w[k][(i + 1) & 3], last = w[k][(i + 3) & 3];
                    now = _mm_add_epi32(_mm_sha256msg1_epu32(now, next), _mm_alignr_epi8(last, w[k][(i + 2) & 3], 4));
                    now = w[k][i & 3] = _mm_sha256msg2_epu32(now, last);
                }
                __m128i sum = _mm_add_epi32(now, _mm_load_si128((const __m128i *)(SHA256_CONSTANTS + 4 * i)));
                cdgh[k] = _mm_sha256rnds2_epu32(cdgh[k], abef[k], sum);
                abef[k] = _mm_sha256rnds2_epu32(abef[k], cdgh[k], _mm_shuffle_epi32(sum, 0x0E));
            }
        for (int k = 0; k < lanes; k++) {
            abef[k] = _mm_add_epi32(abef[k], abef_before[k]);
            cdgh[k] = _mm_add_epi32(cdgh[k], cdgh_before[k]);
        }
    }
    for (int k = 0; k < lanes; k++) {
        __m128i feba = _mm_shuffle_epi32(abef[k], 0x1B), dchg = _mm_shuffle_epi32(cdgh[k], 0xB1);
        _mm_storeu_si128((__m128i *)states[k], _mm_blend_epi16(feba, dchg, 0xF0));
        _mm_storeu_si128((__m128i *)(states[k] + 4), _mm_alignr_epi8(dchg, feba, 8));
    }
}
#elif defined(__aarch64__)
#define SHA256_TARGET "sha2"

/* Bit 6 of the kernel's HWCAP is SHA2. */
static inline int sha256_is_quick(void) { return getauxval(AT_HWCAP) >> 6 & 1; }

__attribute__((target(SHA256_TARGET), always_inline)) static inline void sha256_lanes(
    uint32_t states[][8], const uint8_t *const data[], const int lanes, size_t blocks) {
    uint32x4_t abcd[SHA256_MOST_LANES], efgh[SHA256_MOST_LANES];
    for (int k = 0; k < lanes; k++) abcd[k] = vld1q_u32(states[k]), efgh[k] = vld1q_u32(states[k] + 4);
    for (size_t at = 0; at < blocks * SHA256_BLOCK; at += SHA256_BLOCK) {
        uint32x4_t abcd_before[SHA256_MOST_LANES], efgh_before[SHA256_MOST_LANES], w[SHA256_MOST_LANES][4];
        for (int k = 0; k < lanes; k++) {
            abcd_before[k] = abcd[k], efgh_before[k] = efgh[k];
            for (int i = 0; i < 4; i++) w[k][i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data[k] + at + 16 * i)));
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < lanes; k++) {
                uint32x4_t *words = w[k];
                if (i >= 4)
                    words[i & 3] = vsha256su1q_u32(vsha256su0q_u32(words[i & 3], words[(i + 1) & 3]),
                                                   words[(i + 2) & 3], words[(i + 3) & 3]);
                uint32x4_t sum = vaddq_u32(words[i & 3], vld1q_u32(SHA256_CONSTANTS + 4 * i)), abcd_now = abcd[k];
                abcd[k] = vsha256hq_u32(abcd[k], efgh[k], sum);
                efgh[k] = vsha256h2q_u32(efgh[k], abcd_now, sum);
            }
        for (int k = 0; k < lanes; k++) {
            abcd[k] = vaddq_u32(abcd[k], abcd_before[k]);
            efgh[k] = vaddq_u32(efgh[k], efgh_before[k]);
        }
    }
    for (int k = 0; k < lanes; k++) vst1q_u32(states[k], abcd[k]), vst1q_u32(states[k] + 4, efgh[k]);
}
#endif

__attribute__((target(SHA256_TARGET))) static inline void sha256_quick(
    uint32_t states[][8], const uint8_t *const data[], int lanes, size_t blocks) {
    if (lanes == 2) sha256_lanes(states, data, 2, blocks);
    else sha256_lanes(states, data, 1, blocks);
}

/* Process the end of a message of `bytes` bytes, whose last `bytes % 64` are `rest`, and write the digest. */
static inline void sha256_finish(sha256_compressor compress, uint32_t state[8], const uint8_t *rest, uint64_t bytes,
                                 uint8_t digest[SHA256_DIGEST]) {
    uint8_t end[2 * SHA256_BLOCK] = {0};
    size_t over = bytes % SHA256_BLOCK, blocks = over < SHA256_BLOCK - 8 ? 1 : 2;
    memcpy(end, rest, over);
    end[over] = 0x80;
    uint64_t bits = __builtin_bswap64(bytes * 8);
    memcpy(end + blocks * SHA256_BLOCK - 8, &bits, 8);
    const uint8_t *data[1] = {end};
    compress((uint32_t(*)[8])state, data, 1, blocks);
    for (int i = 0; i < SHA256_DIGEST; i++) digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}
