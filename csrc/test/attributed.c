/* A request whose object is not on record is never taken for one of an object that has no inode (a
 * bootstrap over FUSE): that all of this one is present says nothing of what is read. */
#include "fake.h"

int main(void)
{
	uint8_t all = 0xff;
	struct fake_answer a;
	struct rig r;

	rig_new(&r, 8, 0);
	CHECK(nf_object_add(r.core, 1, 0, 0, -1, 8 * NF_PAGE, &all, 0) == 0);
	CHECK(nf_core_settle(r.core, 1) == 0);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 1, 1, 0, NF_PAGE);
	CHECK(answer_within(&r, PATIENCE_MS).err == 0);
	CHECK(nf_core_stop(r.core) == 0);
	ask(&r, 2, 0, 0, NF_PAGE);
	CHECK(nf_core_start(r.core) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 2 && a.err == EIO);
	rig_free(&r);
	return 0;
}
