/* The chunk table of a bootstrap, and chunks by what they are: see writer.h. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base.h"
#include "codec_internal.h"
#include "writer.h"

#define RECORD 80
#define DIGEST 32
#define BLOB_INDEX 32
#define CHUNK_INDEX 72

static int by_word(uint32_t a, uint32_t b)
{
	return a < b ? -1 : a > b;
}

static int by_key(const uint8_t *a, const uint8_t *b)
{
	int order = memcmp(a, b, DIGEST);

	return order ? order : by_word(le32(a + BLOB_INDEX), le32(b + BLOB_INDEX));
}

static int by_key_last_first(const void *a, const void *b)
{
	const uint8_t *x = a, *y = b;
	int order = by_key(x, y);

	return order ? order : by_word(le32(y + CHUNK_INDEX), le32(x + CHUNK_INDEX));
}

uint32_t rafs_build_sort_table(uint8_t *table, uint32_t n)
{
	uint32_t kept = 0, i;

	qsort(table, n, RECORD, by_key_last_first);
	for (i = 0; i < n; i++) {
		uint8_t *to = table + (size_t)kept * RECORD;
		const uint8_t *from = table + (size_t)i * RECORD;

		if (kept && !by_key(to - RECORD, from))
			continue;
		if (to != from)
			memcpy(to, from, RECORD);
		kept++;
	}
	memset(table + (size_t)kept * RECORD, 0, (size_t)(n - kept) * RECORD);
	return kept;
}

#define KEY (DIGEST + 4)

struct rafs_keys {
	uint8_t *keys;		/* KEY bytes each */
	uint32_t *slots;	/* number + 1, or 0; a power of two of them */
	uint32_t n, room, mask;
	uint64_t seed[DIGEST / 8];
};

struct rafs_keys *rafs_keys_new(void)
{
	struct rafs_keys *k = calloc(1, sizeof(*k));

	/* Without, an image to build upon could only make it slow. */
	if (k && getrandom(k->seed, sizeof(k->seed), 0) < 0)
		k->seed[0] = (uintptr_t)k;
	return k;
}

void rafs_keys_free(struct rafs_keys *keys)
{
	if (!keys)
		return;
	free(keys->keys);
	free(keys->slots);
	free(keys);
}

static uint32_t *slot_of(const struct rafs_keys *k, const uint8_t *key)
{
	const uint64_t hash = (le64(key) ^ k->seed[0]) * (le64(key + 8) ^ k->seed[1]) +
			      (le64(key + 16) ^ k->seed[2]) * (le64(key + 24) ^ k->seed[3]);
	uint32_t i = (uint32_t)(hash >> 32) & k->mask;

	while (k->slots[i] && memcmp(k->keys + (size_t)(k->slots[i] - 1) * KEY, key, KEY))
		i = (i + 1) & k->mask;
	return &k->slots[i];
}

static int grow(struct rafs_keys *k)
{
	const uint32_t room = k->room ? k->room * 2 : 1024;
	uint8_t *keys = realloc(k->keys, (size_t)room * KEY);
	uint32_t *slots, i;

	if (!keys)
		return -ENOMEM;
	k->keys = keys;
	slots = calloc(room * 2ull, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	free(k->slots);
	k->slots = slots;
	k->room = room;
	k->mask = room * 2 - 1;
	for (i = 0; i < k->n; i++)
		*slot_of(k, k->keys + (size_t)i * KEY) = i + 1;
	return 0;
}

int64_t rafs_keys_number(struct rafs_keys *k, const uint8_t *digest, uint32_t size)
{
	uint8_t key[KEY];
	uint32_t *slot;

	if (k->n == k->room && grow(k))
		return -ENOMEM;
	memcpy(key, digest, DIGEST);
	memcpy(key + DIGEST, &size, 4);
	slot = slot_of(k, key);
	if (!*slot) {
		memcpy(k->keys + (size_t)k->n * KEY, key, KEY);
		*slot = ++k->n;
	}
	return *slot - 1;
}

int rafs_keys_numbers(struct rafs_keys *keys, const struct rafs_read_chunk *chunks, uint32_t n,
		      uint32_t *numbers)
{
	for (uint32_t i = 0; i < n; i++) {
		const int64_t number = rafs_keys_number(keys, chunks[i].digest, chunks[i].len);

		if (number < 0)
			return (int)number;
		numbers[i] = (uint32_t)number;
	}
	return 0;
}
