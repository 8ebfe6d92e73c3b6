#include "journal.h"

#include <stdbool.h>

#define FIRST_AREA 4096u
#define MOST_SLOTS (1u << 20)
#define MOST_RECORD 16384u

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

/* Where the records of an area begin that comes at `at` or later, and its meta; returns its end. */
static uint64_t place(uint64_t at, uint32_t record_size, uint32_t slots, uint64_t *records,
		      uint64_t *meta)
{
	*records = round_up(at, 4096);
	*meta = round_up(*records + (uint64_t)record_size * slots, 64);
	return *meta + (uint64_t)slots * sizeof(struct nf_journal_meta);
}

static bool sane(uint32_t record_size, uint32_t slots)
{
	return slots && slots <= MOST_SLOTS && record_size && record_size <= MOST_RECORD &&
	       record_size % 8 == 0;
}

size_t nf_journal_bytes(const struct nf_area_spec *specs, unsigned int n)
{
	uint64_t at = FIRST_AREA, records, meta;
	unsigned int i;

	for (i = 0; i < n; i++)
		at = place(at, specs[i].record_size, specs[i].slots, &records, &meta);
	return (size_t)round_up(at, 4096);
}

int nf_journal_make(void *mem, size_t len, const struct nf_area_spec *specs, unsigned int n)
{
	struct nf_journal_header *h = mem;
	uint64_t at = FIRST_AREA;
	unsigned int i;

	if (n > NF_JOURNAL_AREAS || len < nf_journal_bytes(specs, n))
		return -EINVAL;
	for (i = 0; i < n; i++) {
		struct nf_journal_area *a = &h->areas[i];

		if (!sane(specs[i].record_size, specs[i].slots))
			return -EINVAL;
		a->kind = specs[i].kind;
		a->record_size = specs[i].record_size;
		a->slots = specs[i].slots;
		a->used = 0;
		at = place(at, a->record_size, a->slots, &a->records_off, &a->meta_off);
	}
	h->version = NF_JOURNAL_VERSION;
	h->nareas = n;
	/* last: a journal whose maker was killed is not one */
	__atomic_store_n(&h->magic, NF_JOURNAL_MAGIC, __ATOMIC_RELEASE);
	return 0;
}

int nf_journal_check(const void *mem, size_t len)
{
	const struct nf_journal_header *h = mem;
	uint64_t at = FIRST_AREA, records, meta;
	unsigned int i, k;

	if (len < FIRST_AREA || h->magic != NF_JOURNAL_MAGIC || h->version != NF_JOURNAL_VERSION)
		return -EPROTO;
	if (!h->nareas || h->nareas > NF_JOURNAL_AREAS)
		return -EINVAL;
	for (i = 0; i < h->nareas; i++) {
		const struct nf_journal_area *a = &h->areas[i];

		if (!sane(a->record_size, a->slots) || a->used > a->slots)
			return -EINVAL;
		at = place(at, a->record_size, a->slots, &records, &meta);
		if (a->records_off != records || a->meta_off != meta || at > len)
			return -EINVAL;
		for (k = 0; k < i; k++)
			if (h->areas[k].kind == a->kind)
				return -EINVAL;
	}
	return 0;
}

int nf_journal_area(void *mem, uint32_t kind, uint32_t record_size, struct nf_area *out)
{
	struct nf_journal_header *h = mem;
	unsigned int i;

	for (i = 0; i < h->nareas; i++) {
		struct nf_journal_area *a = &h->areas[i];

		if (a->kind != kind)
			continue;
		if (a->record_size != record_size)
			return -ENOENT;
		out->records = (uint8_t *)mem + a->records_off;
		out->meta = (struct nf_journal_meta *)((uint8_t *)mem + a->meta_off);
		out->used = &a->used;
		out->record_size = a->record_size;
		out->slots = a->slots;
		return 0;
	}
	return -ENOENT;
}
