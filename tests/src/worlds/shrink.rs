//! Makes a world smaller for as long as what is wrong with it stays wrong.

use serde_json::Value;

/// A step of the way into an object.
#[derive(Clone, Debug)]
enum At {
    Field(String),
    Item(usize),
}

/// Takes out objects, then fields and items of lists, one after the other until nothing more can go. `differs` says
/// whether what is wrong is still so.
pub fn shrink(mut objects: Vec<Value>, differs: &mut dyn FnMut(&[Value]) -> bool) -> Vec<Value> {
    loop {
        let before = objects.clone();
        without_objects(&mut objects, differs);
        for index in 0..objects.len() {
            without_parts(&mut objects, index, differs);
        }
        if objects == before {
            return objects;
        }
    }
}

fn without_objects(objects: &mut Vec<Value>, differs: &mut dyn FnMut(&[Value]) -> bool) {
    let mut size = objects.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < objects.len() {
            let end = (start + size).min(objects.len());
            let fewer = [&objects[..start], &objects[end..]].concat();
            if differs(&fewer) {
                *objects = fewer;
            } else {
                start = end;
            }
        }
        size /= 2;
    }
}

fn without_parts(objects: &mut [Value], index: usize, differs: &mut dyn FnMut(&[Value]) -> bool) {
    // Outer parts first; what is taken out makes the next one move up.
    let mut position = 0;
    loop {
        let mut ways = Vec::new();
        ways_of(&objects[index], &mut Vec::new(), &mut ways);
        let Some(way) = ways.get(position) else { return };
        let before = objects[index].clone();
        take_out(&mut objects[index], way);
        if !differs(objects) {
            objects[index] = before;
            position += 1;
        }
    }
}

/// Every way to a part that may go. An object keeps what says which object it is, and a pod that it runs: without a
/// status it would be one that no cluster has seen.
fn ways_of(value: &Value, way: &mut Vec<At>, ways: &mut Vec<Vec<At>>) {
    let mut visit = |at: At, value: &Value| {
        way.push(at);
        if !stays(way) {
            ways.push(way.clone());
        }
        ways_of(value, way, ways);
        way.pop();
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| visit(At::Field(key.clone()), value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| visit(At::Item(index), value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn stays(way: &[At]) -> bool {
    match way {
        [At::Field(top)] => ["apiVersion", "kind", "metadata", "status"].contains(&&**top),
        [At::Field(top), At::Field(field)] => {
            (top == "metadata" && ["namespace", "name"].contains(&&**field)) || (top == "status" && field == "phase")
        }
        _ => false,
    }
}

fn take_out(value: &mut Value, way: &[At]) {
    match (way, value) {
        ([At::Field(key)], Value::Object(fields)) => drop(fields.remove(key)),
        ([At::Item(index)], Value::Array(items)) => drop(items.remove(*index)),
        ([At::Field(key), rest @ ..], value) => take_out(&mut value[key], rest),
        ([At::Item(index), rest @ ..], value) => take_out(&mut value[*index], rest),
        ([], _) => unreachable!("a way has a step"),
    }
}
