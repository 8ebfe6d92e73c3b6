/* A journal is taken when it is one of this version and fits its memory, and else refused. */
#include "fake.h"

#include <sys/mman.h>

int main(void)
{
	static const struct nf_area_spec specs[] = { { 1, 48, 8 }, { 2, 1024, 8 }, { 3, 1024, 5 } };
	size_t len = nf_journal_bytes(specs, 3);
	struct nf_area a, b;
	struct nf_journal_header *h = aligned_alloc(4096, len), good;
	uint32_t i;

	CHECK(h);
	memset(h, 0, len);
	CHECK(nf_journal_check(h, len) == -EPROTO);
	CHECK(nf_journal_make(h, len - 1, specs, 3) == -EINVAL);
	CHECK(nf_journal_make(h, len, specs, 3) == 0);
	CHECK(nf_journal_check(h, len) == 0);
	CHECK(nf_journal_check(h, len - 4096) == -EINVAL);
	CHECK(nf_journal_area(h, 1, 48, &a) == 0 && a.slots == 8 && a.records == (uint8_t *)h + 4096);
	CHECK(nf_journal_area(h, 3, 1024, &b) == 0 && b.slots == 5);
	CHECK(nf_journal_area(h, 3, 512, &b) == -ENOENT && nf_journal_area(h, 4, 48, &b) == -ENOENT);
	CHECK((uint8_t *)(b.meta + b.slots) <= (uint8_t *)h + len);
	nf_area_use(&a, 3);
	nf_area_use(&a, 1);
	CHECK(h->areas[0].used == 4);

	/* any one word wrong: not believed, or harmless (what is used) */
	good = *h;
	for (i = 0; i < sizeof(good) / 4; i++) {
		uint32_t *word = (uint32_t *)h + i;

		for (uint32_t bit = 0; bit < 32; bit++) {
			*h = good;
			*word ^= 1u << bit;
			if (nf_journal_check(h, len) < 0)
				continue;
			CHECK(h->nareas <= 3);
			for (uint32_t k = 0; k < h->nareas; k++) {
				struct nf_journal_area *x = &h->areas[k];

				CHECK(x->used <= x->slots);
				CHECK(x->meta_off + x->slots * sizeof(struct nf_journal_meta) <= len);
			}
		}
	}
	free(h);
	return 0;
}
