/* SPDX-License-Identifier: Apache-2.0 */
#include "block_hash.h"

#include <xxhash.h>

#include "vsr_digest.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TOGETHER 4
#define AVX2	 __attribute__((target("avx2")))

/* The low 64 bits of each product: AVX2 multiplies 32 bits by 32. */
AVX2 static inline __m256i multiply(__m256i a, uint64_t by)
{
	const __m256i low = _mm256_set1_epi64x((long long)by);
	const __m256i high = _mm256_set1_epi64x((long long)(by >> 32));
	__m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), low),
					 _mm256_mul_epu32(a, high));

	return _mm256_add_epi64(_mm256_mul_epu32(a, low), _mm256_slli_epi64(cross, 32));
}

/* vsr_xxh_round() of a stripe: one lane is one accumulator. */
AVX2 static inline __m256i round_of_stripe(__m256i acc, const uint8_t *stripe)
{
	__m256i in = _mm256_loadu_si256((const void *)stripe);

	acc = _mm256_add_epi64(acc, multiply(in, VSR_XXH_P2));
	acc = _mm256_or_si256(_mm256_slli_epi64(acc, 31), _mm256_srli_epi64(acc, 33));
	return multiply(acc, VSR_XXH_P1);
}

/* XXH64's end for a whole number of stripes: there is no remainder. */
AVX2 static uint64_t finish(__m256i acc)
{
	static const int turns[] = { 1, 7, 12, 18 };
	uint64_t lanes[4], h = 0;

	_mm256_storeu_si256((void *)lanes, acc);
	for (unsigned i = 0; i < 4; i++)
		h += vsr_rotl64(lanes[i], turns[i]);
	for (unsigned i = 0; i < 4; i++)
		h = (h ^ vsr_xxh_round(0, lanes[i])) * VSR_XXH_P1 + VSR_XXH_P4;
	return vsr_xxh_avalanche(h + VSR_BLOCK_SIZE);
}

AVX2 static void hash_together(const uint8_t *p, uint64_t seed, uint64_t ret[TOGETHER])
{
	const __m256i start = _mm256_set_epi64x((long long)(seed - VSR_XXH_P1), (long long)seed,
						(long long)(seed + VSR_XXH_P2),
						(long long)(seed + VSR_XXH_P1 + VSR_XXH_P2));
	__m256i a = start, b = start, c = start, d = start;

	for (size_t i = 0; i < VSR_BLOCK_SIZE; i += 32) {
		a = round_of_stripe(a, p + i);
		b = round_of_stripe(b, p + i + VSR_BLOCK_SIZE);
		c = round_of_stripe(c, p + i + 2 * VSR_BLOCK_SIZE);
		d = round_of_stripe(d, p + i + 3 * VSR_BLOCK_SIZE);
	}
	ret[0] = finish(a);
	ret[1] = finish(b);
	ret[2] = finish(c);
	ret[3] = finish(d);
}

static bool can_hash_together(void)
{
	return __builtin_cpu_supports("avx2");
}
#else
#define TOGETHER 1

static void hash_together(const uint8_t *p, uint64_t seed, uint64_t ret[TOGETHER])
{
	ret[0] = XXH64(p, VSR_BLOCK_SIZE, seed);
}

static bool can_hash_together(void)
{
	return false;
}
#endif

void block_hashes(const uint8_t *p, size_t n, uint64_t seed, uint64_t *ret)
{
	if (can_hash_together())
		for (; n >= TOGETHER; n -= TOGETHER) {
			hash_together(p, seed, ret);
			p += TOGETHER * VSR_BLOCK_SIZE;
			ret += TOGETHER;
		}
	for (; n > 0; n--, p += VSR_BLOCK_SIZE)
		*ret++ = XXH64(p, VSR_BLOCK_SIZE, seed);
}
