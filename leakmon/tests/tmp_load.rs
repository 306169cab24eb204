#[tokio::test]
async fn loads() {
    let (mut k, _r) = match leakmon::kernel::Kernel::load(Default::default()) { Ok(x)=>x, Err(e)=>{ let mut s: Option<&dyn std::error::Error>=Some(&e); while let Some(x)=s { eprintln!("{x}"); s=x.source(); } panic!() } };
    println!("{:?}", k.sweep());
    println!("{:?} {:?}", k.loss(), k.capacities());
    for c in leakmon::kernel::host::examine() { println!("{c:?}"); }
}
