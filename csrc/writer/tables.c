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

static uint32_t kind_of_digest(const uint8_t *record)
{
	return (uint32_t)record[0] << 8 | record[1];
}

void rafs_build_count(const uint8_t *table, uint32_t n, uint32_t *counts)
{
	for (uint32_t i = 0; i < n; i++)
		counts[kind_of_digest(table + (size_t)i * RECORD)]++;
}

uint32_t rafs_build_select(const uint8_t *table, uint32_t n, uint32_t blob, uint32_t low,
			   uint32_t high, uint8_t *out)
{
	uint32_t found = 0;

	for (uint32_t i = 0; i < n; i++, table += RECORD) {
		const uint32_t kind = kind_of_digest(table);
		uint8_t *to = out + (size_t)found * RECORD;

		if (kind < low || kind >= high)
			continue;
		memcpy(to, table, RECORD);
		for (uint32_t k = 0; k < 4; k++)
			to[BLOB_INDEX + k] = (uint8_t)(blob >> 8 * k);
		found++;
	}
	return found;
}

/*
 * A chunk is known by 128 bits in place of its digest, which takes twice the memory: the sum of
 * (word + secret) * (word + secret) over its digest and size.  For secrets that nobody knows two
 * chunks have the same sum with a probability of at most 2^-64, whatever their digests are (NH, of
 * Black et al., UMAC, 1999).
 */
struct key {
	uint64_t low, high;
};

struct rafs_keys {
	struct key *keys;
	uint32_t *slots;	/* number + 1, or 0; a power of two of them */
	uint32_t n, room, mask;
	uint64_t secret[DIGEST / 8 + 2];
};

struct rafs_keys *rafs_keys_new(void)
{
	struct rafs_keys *k = calloc(1, sizeof(*k));

	if (k && getrandom(k->secret, sizeof(k->secret), 0) != sizeof(k->secret)) {
		free(k);
		return NULL;
	}
	return k;
}

static struct key key_of(const struct rafs_keys *k, const uint8_t *digest, uint32_t size)
{
	unsigned __int128 sum = (unsigned __int128)(size + k->secret[4]) * k->secret[5];

	for (uint32_t i = 0; i < DIGEST / 8; i += 2)
		sum += (unsigned __int128)(le64(digest + 8 * i) + k->secret[i]) *
		       (le64(digest + 8 * i + 8) + k->secret[i + 1]);
	return (struct key){ (uint64_t)sum, (uint64_t)(sum >> 64) };
}

void rafs_keys_free(struct rafs_keys *keys)
{
	if (!keys)
		return;
	free(keys->keys);
	free(keys->slots);
	free(keys);
}

static uint32_t *slot_of(const struct rafs_keys *k, struct key key)
{
	uint32_t i = (uint32_t)(key.high ^ key.low >> 32) & k->mask;

	while (k->slots[i]) {
		const struct key *known = &k->keys[k->slots[i] - 1];

		if (known->low == key.low && known->high == key.high)
			break;
		i = (i + 1) & k->mask;
	}
	return &k->slots[i];
}

static int grow(struct rafs_keys *k)
{
	const uint32_t room = k->room ? k->room * 2 : 1024;
	struct key *keys = realloc(k->keys, (size_t)room * sizeof(*keys));
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
		*slot_of(k, k->keys[i]) = i + 1;
	return 0;
}

int64_t rafs_keys_number(struct rafs_keys *k, const uint8_t *digest, uint32_t size)
{
	const struct key key = key_of(k, digest, size);
	uint32_t *slot;

	if (k->n == k->room && grow(k))
		return -ENOMEM;
	slot = slot_of(k, key);
	if (!*slot) {
		k->keys[k->n] = key;
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
