//! Synthetic weights against those of the reference script, bit for bit.
//!
//! Fixture: `tests/reference/parts/noise.py`, made by torch 2.11 on an x86-64 CPU with AVX2.

use kontext_core::Device;
use kontext_fixtures::Fixture;
use kontext_formats::Store;

#[test]
fn synthetic_weights_are_those_of_the_reference_script() {
    let fixture = Fixture::open("noise.safetensors");
    let mut seen = 0;
    for name in fixture.names().iter().filter(|n| n.starts_with("synthetic.seed")) {
        let (seed, tensor) = name["synthetic.seed".len()..].split_once('.').unwrap();
        let expected = fixture.tensor(name);
        let store = Store::synthetic(seed.parse().unwrap());
        let value = store.draw(tensor, &expected.size(), Device::Cpu).unwrap().unwrap();
        assert!(value.equal(&expected), "{name}");
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} synthetic tensors in the fixture");
}
