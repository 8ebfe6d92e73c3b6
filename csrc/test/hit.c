/* What is present is answered at once, and Python hears nothing of it. */
#include "fake.h"

int main(void)
{
	struct rig r;
	struct fake_answer a;
	uint8_t *pages;
	int fd;

	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, 16 * NF_PAGE, true, &fd);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 7, 1, 3 * NF_PAGE, 2 * NF_PAGE);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 7 && a.err == 0);
	/* behind the end there is nothing to wait for */
	ask(&r, 8, 1, 16 * NF_PAGE, NF_PAGE);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 8 && a.err == 0);
	CHECK(event_within(&r, 0).type == 0);
	rig_free(&r);
	free(pages);
	return 0;
}
